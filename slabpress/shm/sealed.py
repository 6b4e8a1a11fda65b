"""A worker's native steps (native/queue.pxi, working.pxi): where an arena keeps what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabpress._native import SealedQueue, WorkPoint
from slabpress.shm import layout as at
from slabpress.shm.states import (
    COMPRESSING,
    OUTPUT_FILLING,
    OUTPUT_READY,
    OVERSIZE,
    READY,
    SEALED,
    SLAB_COMPRESSING,
    SLAB_FREE,
    owned,
)

if TYPE_CHECKING:
    from slabpress.shm.arena import Arena


def sealed_queue(arena: Arena) -> SealedQueue:
    """An arena's sealed batches as ``Admission`` looks at them."""
    return SealedQueue(
        arena.memory,
        arena.batch_states,
        SEALED,
        arena.seal_ring,
        at.SEAL_HEAD_AT,
        at.SEAL_TAIL_AT,
        at.ORPHANS_AT,
        at.PARKED_AT,
        at.SPLITS_AT,
        OVERSIZE,
        arena.outputs,
        arena.output_shares,
        arena.geometry.split_outputs,
        arena.layout.descriptors,
        at.DESCRIPTOR_BYTES,
        at.COMMIT_AT,
        at.SEAL_NUMBER_AT,
        at.FIRST_SLAB_AT,
        arena.is_direct,
    )


def work_point(arena: Arena, worker: int) -> WorkPoint:
    """What the worker with this index does with an arena's batches."""
    return WorkPoint(
        arena.sealed_queue,
        arena.admission_lock,
        arena.slabs,
        COMPRESSING,
        READY,
        owned(SLAB_COMPRESSING, worker),
        owned(OUTPUT_FILLING, worker),
        OUTPUT_READY,
        SLAB_FREE,
        at.ROOM_WANTED_AT,
        at.WORKER_COUNTERS_AT + worker * at.LINE_BYTES,
        worker,
        at.FIRST_OUTPUT_AT,
        at.WORKER_AT,
        at.DEATHS_AT,
        at.SPLIT_SOURCE_AT,
    )
