"""A leader's share of the arena: what its batches may hold while there are other brokers.

A broker that is down or slow keeps its batches in the arena. Without a limit they would soon be all that is in it, as
whatever the others give back is shared out anew (librdkafka#2677). So who gives out slabs (the coordinator) and output
buffers (whoever holds the admission lock) counts what each leader's batches hold and gives no more to one that has its
share; the rule is in native/shares.pxi.

    slabs            a record for it waits, outside the line of those that wait for room (pipeline/room.py)
    output buffers   its batches are PARKED, and those behind them are admitted (shm/admission.py)

The network process says who leads a topic-partition, once its first batch was sealed; before that it is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from slabpress._native import Blocks, Shares
from slabpress.shm import layout as at
from slabpress.shm.states import COMPRESSING, IN_FLIGHT, OPEN, OVERSIZE, PARKED, PARTIAL, READY, SEALED

if TYPE_CHECKING:
    from slabpress.shm.arena import Arena

_HOLDING_SLABS: Final = frozenset({OPEN, SEALED, PARKED, COMPRESSING})
# In a direct arena slabs are what is sent, and what is sent again in pieces.
_HOLDING_SENT_SLABS: Final = frozenset({OPEN, COMPRESSING, READY, IN_FLIGHT, OVERSIZE, PARTIAL})
_HOLDING_OUTPUTS: Final = frozenset({COMPRESSING, READY, IN_FLIGHT, OVERSIZE, PARTIAL})


def slab_shares(arena: Arena) -> Shares:
    """Who has its share of the slabs."""
    holding = _HOLDING_SENT_SLABS if arena.is_direct else _HOLDING_SLABS
    return _shares(arena, arena.slabs, holding, at.SLAB_COUNT_AT, 1, 0)


def output_shares(arena: Arena) -> Shares:
    """Who has its share of the output buffers.

    Besides the room for a piece that admission always leaves, there must be some for the largest batch of another
    leader: as much again.
    """
    largest = arena.geometry.split_outputs
    return _shares(arena, arena.outputs, _HOLDING_OUTPUTS, at.OUTPUT_COUNT_AT, max(1, largest), 2 * largest)


def _shares(arena: Arena, blocks: Blocks, holding: Iterable[int], count_at: int, step: int, leave: int) -> Shares:
    return Shares(
        arena.memory,
        blocks,
        arena.batch_states,
        sum(1 << state for state in holding),
        arena.layout.descriptors,
        at.DESCRIPTOR_BYTES,
        count_at,
        at.PARTITION_INDEX_AT,
        at.SEAL_NUMBER_AT,
        arena.layout.partitions,
        at.PARTITION_BYTES,
        at.LEADER_AT,
        arena.geometry.partition_count,
        at.BROKERS_AT,
        step,
        leave,
    )
