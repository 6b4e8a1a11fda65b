"""Small arenas, and what a coordinator and a network process do to them, without processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from slabpress._native import BATCH_FULL, NONE, OpenBatch, RecordWriter
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors, Output
from slabpress.shm.layout import Geometry, layout_of
from slabpress.shm.states import (
    FREE,
    OPEN,
    OUTPUT_FREE,
    OUTPUT_READY,
    READY,
    SEALED,
    SLAB_FREE,
    SLAB_OPEN,
    SLAB_READY,
    SLAB_SEALED,
)
from slabpress.workers.compressor import Compressor

CHILD_TIMEOUT_S: Final = 60
PROJECT: Final = Path(__file__).parents[2]
# A process that holds an arena's admission lock until its standard input ends or it is killed; writes "x" once it does.
_LOCK_HOLDER: Final = """
import os, sys
from slabpress.shm.arena import Arena
arena = Arena.attach(int(sys.argv[1]))
with arena.admission_lock:
    os.write(1, b"x")
    sys.stdin.read()
"""


def small_geometry(
    slab_bytes: int = 64,
    slabs: int = 8,
    outputs: int | None = None,
    batches: int | None = None,
    topics: int = 2,
    partitions: int = 4,
    *,
    direct: bool = False,
) -> Geometry:
    """A geometry of exactly these counts; slabs may be far smaller than settings allow.

    In a direct arena all output buffers are for pieces.
    """
    outputs = slabs if outputs is None else outputs
    batches = slabs + outputs if batches is None else batches
    geometry = Geometry(0, slab_bytes, slabs, slab_bytes, outputs, batches, topics, partitions)
    if direct:
        geometry = geometry._replace(split_outputs=outputs, is_direct=1)
    return geometry._replace(arena_bytes=layout_of(geometry).end)


@contextlib.contextmanager
def small_arena(
    slab_bytes: int = 64,
    slabs: int = 8,
    outputs: int | None = None,
    batches: int | None = None,
    topics: int = 2,
    partitions: int = 4,
    *,
    direct: bool = False,
) -> Iterator[Arena]:
    """An arena of exactly these counts, closed at the end."""
    arena = Arena.create(small_geometry(slab_bytes, slabs, outputs, batches, topics, partitions, direct=direct))
    try:
        yield arena
    finally:
        arena.close()


def make_writer(arena: Arena, batch_bytes: int = 1 << 30, largest_record_bytes: int = 1 << 30) -> RecordWriter:
    """A record writer as the accumulator makes it."""
    return RecordWriter(
        arena.memory,
        arena.slabs,
        arena.slab_shares,
        SLAB_OPEN,
        arena.layout.descriptors,
        at.DESCRIPTOR_BYTES,
        at.COMMIT_AT,
        at.BASE_TIMESTAMP_AT,
        at.MAX_TIMESTAMP_AT,
        at.FIRST_SLAB_AT,
        at.SLAB_COUNT_AT,
        batch_bytes,
        largest_record_bytes,
    )


def open_batch(arena: Arena, descriptor: int = 0, partition: int = 0, created_ns: int | None = None) -> OpenBatch:
    """Open a batch in a descriptor; it was created now, unless it is said when."""
    Descriptors(arena).open(descriptor, partition, time.monotonic_ns() if created_ns is None else created_ns)
    arena.batch_states.store(descriptor, OPEN)
    return OpenBatch(descriptor, partition)


def publish_seal(arena: Arena, descriptors: Descriptors, batch: OpenBatch) -> int:
    """Publish a batch that has records, store by store as ``RecordWriter.seal``; its seal number.

    The native one (native/writer.pxi) cannot be stopped in between, nor could it be asked to leave the arena to a
    process that dies. What it counts at last is left out.
    """
    tail, index = arena.seal_tail, batch.descriptor
    if arena.is_direct:
        descriptors.set_slabs_as_output(index)
    descriptors.set_seal_number(index, tail + 1)
    arena.slabs.mark(batch.first_slab, SLAB_READY if arena.is_direct else SLAB_SEALED)
    arena.seal_ring.store(tail % arena.geometry.seal_ring_entries, index)
    arena.batch_states.store(index, READY if arena.is_direct else SEALED)
    arena.memory.store_u64(at.SEAL_TAIL_AT, tail + 1)
    return tail + 1


def bytes_of(arena: Arena, first_slab: int, length: int) -> bytes:
    """What a chain of slabs holds."""
    return b"".join(arena.slabs.views(first_slab, length))


class SealingCoordinator:
    """The coordinator's side of one arena: seals batches and takes their descriptors back."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.descriptors = Descriptors(arena)
        self.writer = make_writer(arena)

    def seal(self, value: bytes, partition: int = 0) -> tuple[int, bytes] | None:
        """Seal a batch of one record; its descriptor and bytes, or None while there is no room."""
        arena = self.arena
        index = arena.batch_states.find(FREE)
        if index < 0:
            return None
        batch = open_batch(arena, index, partition)
        if self.writer.append(batch, None, value, None, 0) <= 0:
            arena.batch_states.store(index, FREE)
            return None
        publish_seal(arena, self.descriptors, batch)
        return index, bytes_of(arena, batch.first_slab, batch.bytes)

    def seal_full(self, values: Iterator[bytes], batch_bytes: int, partition: int = 0) -> int:
        """Seal a batch with as many of the values as ``batch_bytes`` hold; its descriptor."""
        arena = self.arena
        index = arena.batch_states.find(FREE)
        batch = open_batch(arena, index, partition)
        batch.limit = batch_bytes
        for value in values:
            size = self.writer.append(batch, None, value, None, 1_700_000_000_000 + batch.records)
            if size == BATCH_FULL:
                break
            if size <= 0:
                raise ValueError(f"no slab is left for batch {index} of {batch_bytes} bytes")
        publish_seal(arena, self.descriptors, batch)
        return index

    def scribble_on_free_slabs(self) -> None:
        """Write over everything that is said to be free, as the next records would."""
        arena = self.arena
        free = arena.slabs.count_free()
        first = arena.slabs.claim(free, SLAB_OPEN)
        if first != NONE:
            for view in arena.slabs.views(first, free * arena.slabs.block_bytes):
                view[:] = b"\xff" * len(view)
            arena.slabs.mark(first, SLAB_FREE)


def take(admission: Admission) -> int | None:
    """Be admitted to the next batch; its descriptor."""
    task = admission.take()
    return None if task is None else task.index


def finish(compressor: Compressor, index: int) -> None:
    """Compress a batch that the worker was admitted to, unless that is done already, and publish it."""
    task = compressor.admission.point.task(index)
    if task.payload_bytes == 0:
        compressor._compress(task)
    compressor._publish(task)


def publish_raw(arena: Arena, index: int) -> None:
    """What a worker does to a batch that it was admitted to: copy, publish, free the slabs."""
    descriptors = Descriptors(arena)
    sealed, output = descriptors.sealed(index), descriptors.output(index)
    data = bytes_of(arena, sealed.first_slab, sealed.raw_bytes)
    for view in arena.outputs.views(output.first_output, len(data)):
        view[:] = data[: len(view)]
        data = data[len(view) :]
    descriptors.set_output(index, Output(output.first_output, output.output_count, sealed.raw_bytes, 0))
    arena.outputs.mark(output.first_output, OUTPUT_READY)
    arena.batch_states.store(index, READY)
    arena.slabs.mark(sealed.first_slab, SLAB_FREE)


def deliver(arena: Arena, index: int) -> bytes:
    """What a network process and the coordinator do to a READY batch; its payload."""
    output = Descriptors(arena).output(index)
    payload = b"".join(arena.outputs.views(output.first_output, output.payload_bytes))
    arena.outputs.mark(output.first_output, OUTPUT_FREE)
    arena.batch_states.store(index, FREE)
    return payload


@contextlib.contextmanager
def lock_holder(arena: Arena) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the arena's admission lock; it does not survive this."""
    with subprocess.Popen(
        [sys.executable, "-c", _LOCK_HOLDER, str(arena.descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[arena.descriptor],
        cwd=PROJECT,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.read(1) == b"x"
            yield child
        finally:
            child.kill()


def run_python(code: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, so that it may crash."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        pass_fds=pass_fds,
        cwd=PROJECT,
        check=False,
    )
