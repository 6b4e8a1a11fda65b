"""One worker's work on one arena: be admitted to a batch, compress its slabs into its output buffers.

    slabs (COMPRESSING) --codec--> output buffers (FILLING)    (of a split batch: its source, decompressed and cut)
    payload size into the descriptor, last                     <- nothing left to compress, whoever publishes
    publish: surplus FREE, output buffers READY, batch READY   <- from here the network process owns it
    slabs FREE                                                 <- law 7: only after the output is published

A kill between any two of these steps leaves what ``shm/admission.py`` knows how to put right.
"""

from __future__ import annotations

from slabpress._native import NONE, Task, cut_records
from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, Control
from slabpress.shm.descriptors import CODEC_NONE, Descriptors
from slabpress.shm.splits import Splits
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
        self._point = self.admission.point
        self._calls = calls or Calls(control, worker)
        self._calls.add(arena, self.admission)

    def work(self) -> bool:
        """Compress one batch if there is one to be had."""
        task = self.admission.take()
        if task is None:
            return False
        self._calls.begin(self.arena, task.raw_bytes, task.takes_ns)
        if task.payload_bytes == 0:  # else it is compressed already, by a worker that died before it had published it
            self._compress(task)
        self._publish(task)
        return True

    def _compress(self, task: Task) -> None:
        """Fill the batch's output buffers, and say so."""
        codec, chunks, raw_bytes = self.codec, task.chunks, task.raw_bytes
        # A batch that kills one worker after the other is sent as it is: law 5 lets any batch go uncompressed.
        deadly = task.deaths >= DEATHS_MAX
        if raw_bytes <= codec.whole_bytes and len(chunks) == 1 and not deadly:
            self._point.fill(task, codec.whole(chunks[0]), codec.id)
            return
        if task.source != NONE:
            chunks, raw_bytes = self._cut_piece(task.index)
        buffers = self._point.buffers(task)
        payload_bytes = NOT_SMALLER if deadly else codec.compress(chunks, raw_bytes, buffers)
        if payload_bytes == NOT_SMALLER:
            copy_stream(chunks, buffers)
            self._point.finish(task, raw_bytes, raw_bytes, CODEC_NONE)
        else:
            self._point.finish(task, raw_bytes, payload_bytes, codec.id)

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

    def _publish(self, task: Task) -> None:
        """Give the batch to the network process, and what it no longer needs back to everybody."""
        is_room = self._point.publish(task)
        self._calls.published(self.arena)
        if is_room:  # of less the coordinator hears with this batch's result
            self._control.wake(COORDINATOR)


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
