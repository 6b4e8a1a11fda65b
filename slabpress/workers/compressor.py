"""One worker's work on one arena: be admitted to a batch, compress its slabs into its output buffers.

    slabs (COMPRESSING) --codec--> output buffers (FILLING)    (of a split batch: its source, decompressed and cut)
    payload size into the descriptor, last                     <- nothing left to compress, whoever publishes
    publish: surplus FREE, output buffers READY, batch READY   <- from here the network process owns it
    slabs FREE                                                 <- law 7: only after the output is published

A kill between any two of these steps leaves what ``shm/admission.py`` knows how to put right.
"""

from __future__ import annotations

import time

from slabpress._native import NONE, cut_records
from slabpress.shm import layout as at
from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, NETWORK, Control
from slabpress.shm.descriptors import CODEC_NONE, Descriptors, Task
from slabpress.shm.splits import Splits
from slabpress.shm.states import OUTPUT_READY, READY, SLAB_FREE
from slabpress.workers.calls import Calls
from slabpress.workers.codecs import NOT_SMALLER, Codec


class Compressor:
    """Compresses the batches of one arena in one worker process.

    Args:
        arena: the arena.
        codec: its producer's codec, which arenas with the same settings share: one batch is compressed at a time.
        worker: this worker's index, from 0.
        control: whom to wake.
        calls: the worker's, if it has other arenas.
    """

    def __init__(self, arena: Arena, codec: Codec, worker: int, control: Control, calls: Calls | None = None) -> None:
        self.arena = arena
        self.codec = codec
        self._control = control
        self._descriptors = Descriptors(arena)
        self._splits = Splits(arena)
        self.admission = Admission(arena, worker)
        self._calls = calls or Calls(control, worker)
        self._calls.add(arena, self.admission)
        self._ns_per_byte = 0.0  # 0 before the first batch
        self._counters = at.WORKER_COUNTERS_AT + worker * at.LINE_BYTES

    def work(self) -> bool:
        """Compress one batch if there is one to be had."""
        index = self.admission.take()
        if index is None:
            return False
        task = self._descriptors.task(index)
        # A piece of a split batch has to be cut out first.
        takes_ns = task.raw_bytes * self._ns_per_byte if task.source == NONE else 0.0
        self._calls.begin(self.arena, task.raw_bytes, takes_ns)
        self._finish(index, task)
        return True

    def finish(self, index: int) -> None:
        """Compress a batch that this worker was admitted to, unless that is done already, and publish it."""
        self._finish(index, self._descriptors.task(index))

    def _finish(self, index: int, task: Task) -> None:
        is_finished = task.payload_bytes != 0  # by a worker that died of nothing else
        output_count = task.output_count if is_finished else self._compress(index, task)
        self._publish(index, task, output_count)

    def _compress(self, index: int, task: Task) -> int:
        """Fill the batch's output buffers; how many it took."""
        started_ns = time.monotonic_ns()
        outputs = self.arena.outputs
        if task.source != NONE:
            chunks, raw_bytes = self._cut_piece(index)
        else:
            chunks, raw_bytes = self.arena.slabs.runs(task.first_slab, task.raw_bytes), task.raw_bytes
        # The whole chain, whatever the count says: a dead predecessor may have stored the count of what it used, and
        # nothing is trimmed before the payload's size is there.
        buffers = outputs.runs(task.first_output)
        # A batch that kills one worker after the other is sent as it is: law 5 lets any batch go uncompressed.
        deadly = task.deaths >= DEATHS_MAX
        payload_bytes = NOT_SMALLER if deadly else self.codec.compress(chunks, raw_bytes, buffers)
        codec = self.codec.id
        if payload_bytes < 0:
            payload_bytes, codec = raw_bytes, CODEC_NONE
            copy_stream(chunks, buffers)
        used = -(-payload_bytes // outputs.block_bytes)
        self._descriptors.finish_output(index, (task.first_output, used, payload_bytes, codec))
        took_ns = time.monotonic_ns() - started_ns
        self._learn(took_ns / raw_bytes)
        self._count(raw_bytes, payload_bytes, took_ns // 1000)
        return used

    def _cut_piece(self, index: int) -> tuple[list[memoryview], int]:
        """The records of the next piece of a split batch, out of the payload that was too large (shm/splits.py)."""
        # Rare, and needs a decoder: a worker that never splits does not pay for it.
        from slabpress.workers.decoders import decompress, scratch

        batch, split = self._descriptors.sealed(index), self._splits.get(index)
        source = self.arena.outputs.views(split.source, split.source_bytes)
        raw = decompress(split.source_codec, source, batch.raw_bytes)
        piece = scratch(batch.raw_bytes)
        raw_bytes, newest_ms, records = cut_records(raw, split.first, split.wanted, batch.base_timestamp_ms, piece)
        self._splits.set_piece(index, records, newest_ms)
        return [piece[:raw_bytes]], raw_bytes

    def _publish(self, index: int, task: Task, output_count: int) -> None:
        """Give the batch to the network process, and what it no longer needs back to everybody."""
        arena = self.arena
        arena.outputs.trim(task.first_output, output_count)
        arena.outputs.mark(task.first_output, OUTPUT_READY)
        arena.batch_states.store(index, READY)
        arena.slabs.mark(task.first_slab, SLAB_FREE)
        self._control.wake(NETWORK)
        wanted = arena.memory.load_u64(at.ROOM_WANTED_AT)
        # Of less room the coordinator hears with this batch's result.
        if wanted and arena.slabs.count_free() >= wanted:
            self._control.wake(COORDINATOR)

    def _learn(self, ns_per_byte: float) -> None:
        """How long a batch will take: as others did, but one that the system interrupted shall not count for much."""
        known = self._ns_per_byte or ns_per_byte
        self._ns_per_byte = known + (min(ns_per_byte, 2 * known) - known) / 8

    def _count(self, raw_bytes: int, payload_bytes: int, busy_us: int) -> None:
        sent_raw = int(payload_bytes == raw_bytes)
        self.arena.memory.add_all(self._counters, 1, raw_bytes, payload_bytes, busy_us, sent_raw)


def copy_stream(chunks: list[memoryview], buffers: list[memoryview]) -> None:
    """Copy consecutive chunks into consecutive buffers, whatever their sizes."""
    target, at_byte = 0, 0
    for chunk in chunks:
        done = 0
        while done < len(chunk):
            if at_byte == len(buffers[target]):
                target, at_byte = target + 1, 0
            part = min(len(chunk) - done, len(buffers[target]) - at_byte)
            buffers[target][at_byte : at_byte + part] = chunk[done : done + part]
            at_byte += part
            done += part
