"""An arena in which a process dies before the n-th change that it makes, to try every n."""

from __future__ import annotations

import functools
from typing import Any

from slabpress._native import NONE, Blocks, Task, Words
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import CODEC_NONE, Descriptors, Output, Result
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    COMPRESSING,
    IN_FLIGHT,
    OUTPUT_FILLING,
    OUTPUT_FREE,
    OUTPUT_IN_FLIGHT,
    OUTPUT_READY,
    READY,
    SLAB_COMPRESSING,
    SLAB_FREE,
    owned,
)
from slabpress.workers.compressor import Compressor


class Killed(BaseException):
    """The process died here; as a BaseException nothing handles it on the way."""


class Life:
    """How many changes a process may still make. ``made`` counts them."""

    def __init__(self, changes: int = 1 << 60) -> None:
        self.left = changes
        self.made = 0

    def change(self) -> None:
        """Make one change, or die instead."""
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.made += 1


class _Mortal:
    """Passes on to the real thing what changes nothing."""

    def __init__(self, life: Life, real: object) -> None:
        self._life = life
        self._real: Any = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _MortalStores(_Mortal):
    """Memory or Words."""

    def store(self, *arguments: int) -> None:
        self._life.change()
        self._real.store(*arguments)

    def store_u32(self, *arguments: int) -> None:
        self._life.change()
        self._real.store_u32(*arguments)

    def store_u64(self, *arguments: int) -> None:
        self._life.change()
        self._real.store_u64(*arguments)

    def add_u64(self, *arguments: int) -> None:
        self._life.change()
        self._real.add_u64(*arguments)


class _MortalBlocks(_Mortal):
    """Blocks whose chains are painted one block, one change, at a time, as the native code does it."""

    def __init__(self, life: Life, real: Blocks, states: Words, nexts: Words, free: int) -> None:
        super().__init__(life, real)
        self._states = states
        self._nexts = nexts
        self._free = free

    def claim(self, wanted: int, state: int) -> int:
        first: int = self._real.claim(wanted, state)
        chain = self._real.chain(first)
        for place, _ in enumerate(chain):
            try:
                self._life.change()
            except Killed:
                for block in chain[place:]:
                    self._states.store(block, self._free)
                raise
        return first

    def mark(self, first: int, state: int) -> None:
        for block in self._real.chain(first):
            self._life.change()
            self._states.store(block, state)

    def trim(self, first: int, keep: int) -> int:
        chain = self._real.chain(first)
        self._life.change()
        self._nexts.store(chain[keep - 1], NONE)
        for block in chain[keep:]:
            self._life.change()
            self._states.store(block, self._free)
        return len(chain) - keep


class MortalDescriptors(Descriptors):
    """Descriptors whose plain fields are written in one change each."""

    def __init__(self, life: Life, arena: Any, real: Arena) -> None:
        super().__init__(arena)
        self._life = life
        self._arena = arena
        assert arena.layout is real.layout

    def set_output(self, index: int, output: Any) -> None:
        self._life.change()
        super().set_output(index, output)

    def set_admitted(self, *arguments: int) -> None:
        self._life.change()
        super().set_admitted(*arguments)


class MortalSendPoint(_Mortal):
    """``SendPoint`` with its changes made one at a time; test_sending.py compares it with the native one."""

    def __init__(self, life: Life, arena: Any, real: Arena) -> None:
        super().__init__(life, real.send_point)
        self._arena = arena
        self._descriptors = MortalDescriptors(life, arena, real)

    def start(self, index: int) -> None:
        self._descriptors.set_attempts(index, self._descriptors.attempts(index) + 1)
        self._arena.outputs.mark(self._descriptors.output(index).first_output, OUTPUT_IN_FLIGHT)
        self._arena.batch_states.store(index, IN_FLIGHT)

    def end(
        self,
        index: int,
        records: int,
        code: int,
        record_index: int,
        retriable: bool,
        base_offset: int,
        append_time_ms: int,
        text: bytes,
        state: int,
    ) -> None:
        result = Result(code, record_index, base_offset, append_time_ms, retriable, text.decode())
        self._life.change()
        self._descriptors.set_result(index, result)
        output = self._descriptors.output(index)
        self._arena.outputs.mark(output.first_output, OUTPUT_IN_FLIGHT)
        self._descriptors.set_output(index, Output(NONE, *output[1:]))
        self._arena.outputs.mark(output.first_output, OUTPUT_FREE)
        names = ("records_delivered", "batches_delivered") if code == 0 else ("records_failed", "batches_failed")
        counted = dict(zip(names, (records, 1), strict=True))
        counted |= {"payload_bytes_delivered": output.payload_bytes} if code == 0 else {}
        for name, amount in counted.items():
            self._arena.memory.add_u64(at.NETWORK_COUNTERS_AT + 8 * at.NETWORK_COUNTERS.index(name), amount)
        if state >= 0:
            self._arena.batch_states.store(index, state)


class MortalWorkPoint(_Mortal):
    """``WorkPoint`` with its changes made one at a time; test_working.py compares it with the native one.

    Without the lock: a process that dies has it no more.
    """

    def __init__(self, life: Life, arena: Any, real: Arena, worker: int) -> None:
        super().__init__(life, real.work_point(worker))
        self._arena = arena
        self._real_arena = real
        self._worker = worker
        self._descriptors = MortalDescriptors(life, arena, real)

    def admit(self) -> Task | None:
        arena, descriptors = self._arena, self._descriptors
        if not arena.sealed_queue.is_ready():
            return None
        head = arena.seal_head
        index = arena.sealed_at(head)
        sealed = descriptors.sealed(index)
        needed = max(1, -(-sealed.raw_bytes // arena.outputs.block_bytes))
        first = arena.outputs.claim(needed, owned(OUTPUT_FILLING, self._worker))
        descriptors.set_admitted(index, first, needed, self._worker)
        arena.batch_states.store(index, COMPRESSING)
        arena.slabs.mark(sealed.first_slab, owned(SLAB_COMPRESSING, self._worker))
        arena.memory.store_u64(at.SEAL_HEAD_AT, head + 1)
        task: Task = self._real.task(index)
        return task

    def fill(self, task: Task, payload: bytes | memoryview, codec: int) -> None:
        if len(payload) >= task.raw_bytes:
            payload, codec = task.chunks[0], CODEC_NONE
        left = payload
        for view in self._real_arena.outputs.views(task.first_output, len(payload)):
            view[:] = left[: len(view)]
            left = left[len(view) :]
        self.finish(task, task.raw_bytes, len(payload), codec)

    def finish(self, task: Task, raw_bytes: int, payload_bytes: int, codec: int) -> None:
        memory, used = self._arena.memory, -(-payload_bytes // self._arena.outputs.block_bytes)
        self._descriptors.set_output(task.index, Output(task.first_output, used, 0, codec))
        memory.store_u32(self._descriptors._at(task.index, at.PAYLOAD_BYTES_AT), payload_bytes)
        counters = at.WORKER_COUNTERS_AT + self._worker * at.LINE_BYTES
        for place, amount in enumerate((1, raw_bytes, payload_bytes, 0, int(payload_bytes == raw_bytes))):
            memory.add_u64(counters + 8 * place, amount)

    def publish(self, task: Task) -> bool:
        arena = self._arena
        arena.outputs.trim(task.first_output, self._descriptors.output(task.index).output_count)
        arena.outputs.mark(task.first_output, OUTPUT_READY)
        arena.batch_states.store(task.index, READY)
        arena.slabs.mark(task.first_slab, SLAB_FREE)
        wanted = arena.memory.load_u64(at.ROOM_WANTED_AT)
        return bool(wanted and arena.slabs.count_free() >= wanted)


def mortal(arena: Arena, life: Life) -> Any:
    """The arena as a process with this life changes it."""
    real = arena
    stand_in: Any = _Mortal(life, real)
    layout = real.layout
    stand_in.memory = _MortalStores(life, real.memory)
    for name in ("batch_states", "slab_states", "output_states", "payload_states", "seal_ring"):
        setattr(stand_in, name, _MortalStores(life, getattr(real, name)))
    slab_nexts = Words(real.memory, layout.slab_nexts, real.slabs.count)
    # What is sent: slabs and output buffers in a direct arena.
    nexts = layout.slab_nexts if real.is_direct else layout.output_nexts
    payload_nexts = Words(real.memory, nexts, real.outputs.count)
    stand_in.slabs = _MortalBlocks(life, real.slabs, real.slab_states, slab_nexts, OUTPUT_FREE)
    stand_in.outputs = _MortalBlocks(life, real.outputs, real.payload_states, payload_nexts, OUTPUT_FREE)
    stand_in.work_point = functools.partial(MortalWorkPoint, life, stand_in, real)
    stand_in.send_point = MortalSendPoint(life, stand_in, real)
    return stand_in


def make_mortal(admission: Admission, real: Arena, life: Life) -> None:
    """Let an Admission change the arena only as long as ``life`` lasts."""
    arena = mortal(real, life)
    holder: Any = admission
    holder._arena = arena
    holder._descriptors = MortalDescriptors(life, arena, real)
    holder._splits = Splits(arena)
    holder.point = arena.work_point(holder._worker)


def make_mortal_worker(compressor: Compressor, real: Arena, life: Life) -> None:
    """Let a Compressor and its Admission change the arena only as long as ``life`` lasts."""
    make_mortal(compressor.admission, real, life)
    holder: Any = compressor
    holder.arena = holder.admission._arena
    holder._descriptors = holder.admission._descriptors
    holder._splits = holder.admission._splits
    holder._point = holder.admission.point
