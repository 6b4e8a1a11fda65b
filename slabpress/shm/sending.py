"""The network process's native steps (native/sending.pxi): where an arena keeps what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabpress._native import Inbox, SendPoint
from slabpress.shm import layout as at
from slabpress.shm.states import IN_FLIGHT, OUTPUT_FREE, OUTPUT_IN_FLIGHT, READY

if TYPE_CHECKING:
    from slabpress.shm.arena import Arena


def send_point(arena: Arena) -> SendPoint:
    """What is done with an arena's batches on their way to a broker."""
    return SendPoint(
        arena.memory,
        arena.batch_states,
        IN_FLIGHT,
        arena.outputs,
        OUTPUT_IN_FLIGHT,
        OUTPUT_FREE,
        at.SPLITS_AT,
        at.NETWORK_COUNTERS_AT,
        arena.layout.descriptors,
        at.DESCRIPTOR_BYTES,
        at.COMMIT_AT,
        at.FIRST_OUTPUT_AT,
        at.ATTEMPTS_AT,
        at.RESULT_CODE_AT,
        at.SPLIT_SOURCE_AT,
        at.BATCH_HEADER_AT,
        at.TEXT_AT,
        at.TEXT_BYTES,
    )


def inbox(arena: Arena) -> Inbox:
    """A network process's view of what others do in an arena, from the beginning."""
    return Inbox(
        arena.memory,
        arena.batch_states,
        READY,
        arena.seal_ring,
        at.SEAL_TAIL_AT,
        at.TOPICS_WANTED_AT,
        arena.layout.descriptors,
        at.DESCRIPTOR_BYTES,
        at.SEAL_NUMBER_AT,
        at.PARTITION_INDEX_AT,
        at.CREATED_AT,
    )
