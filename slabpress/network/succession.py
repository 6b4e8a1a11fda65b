"""What a network process that takes over finds in an arena, and makes of it (the steps are in network/batches.py)."""

from __future__ import annotations

from slabpress._native import NONE
from slabpress.network.sequences import Sequences
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.splits import Split, Splits
from slabpress.shm.states import (
    DONE,
    IN_FLIGHT,
    OUTPUT_FREE,
    OUTPUT_IN_FLIGHT,
    OUTPUT_READY,
    OVERSIZE,
    PARTIAL,
    READY,
    UNDER_WAY,
)


def make_order(arena: Arena, descriptors: Descriptors, splits: Splits, sequences: Sequences) -> None:
    """Make order after a predecessor that died: its batches on the wire are READY to be sent again."""
    states = arena.batch_states
    held: set[int] = set()
    for index in (index for state in UNDER_WAY for index in states.find_all(state)):
        sealed = descriptors.sealed(index)
        sequences.mend(index, sealed.partition_index, splits.get(index).first, sealed.records)
    for state in (READY, IN_FLIGHT):
        for index in states.find_all(state):
            first, split = descriptors.output(index).first_output, splits.get(index)
            if first == NONE:
                _end(arena, splits, index, split, descriptors.sealed(index).records)
                continue
            arena.outputs.mark(first, OUTPUT_READY)
            held.update(arena.outputs.chain(first))
            states.store(index, OVERSIZE if first == split.source else READY)
    # Only this role makes an output IN_FLIGHT, so what is IN_FLIGHT now was being freed.
    for output in arena.payload_states.find_all(OUTPUT_IN_FLIGHT):
        if output not in held:
            arena.payload_states.store(output, OUTPUT_FREE)


def _end(arena: Arena, splits: Splits, index: int, split: Split, records: int) -> None:
    """What a predecessor has left of a batch's end after the first output became NONE."""
    # All the rest may have had its result at once (``ArenaBatches.finish``): then the source was being freed.
    kept = split.is_split and arena.payload_states.load(split.source) == OUTPUT_READY
    if kept and split.first + split.piece_records < records:
        arena.batch_states.store(index, PARTIAL)
    else:
        drop_source(arena, splits, index)
        arena.batch_states.store(index, DONE)


def drop_source(arena: Arena, splits: Splits, index: int) -> None:
    """Free the source of a batch, if it is split, that has its last result."""
    source = splits.get(index).source
    if source != NONE:
        arena.outputs.mark(source, OUTPUT_IN_FLIGHT)
        splits.drop_source(index)
        arena.outputs.mark(source, OUTPUT_FREE)
