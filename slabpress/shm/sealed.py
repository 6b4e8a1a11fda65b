"""The sealed batches at one look (native/queue.pxi): where an arena keeps what the look is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabpress._native import SealedQueue
from slabpress.shm import layout as at
from slabpress.shm.states import OVERSIZE, SEALED

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
