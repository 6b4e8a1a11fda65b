"""Room that responses have made: whether a worker is to be woken for it."""

from __future__ import annotations

from typing import Final

from slabpress.shm.arena import Arena
from slabpress.shm.layout import ORPHANS_AT, PARKED_AT, SPLITS_AT
from slabpress.shm.states import IN_FLIGHT, READY

# With more on its way, a worker is not woken for less than this share of the output buffers: while brokers are what
# everything waits for, it was woken for each response, compressed what that had made room for, and slept again.
_WORTH_A_RING: Final = 16
# More is on its way while batches that are READY or on the wire, of leaders within their share, hold this much.
_MUCH: Final = 2
_ON_THEIR_WAY: Final = 1 << READY | 1 << IN_FLIGHT


def is_worker_wanted(arena: Arena) -> bool:
    """Whether a sleeping worker may have been waiting for what was freed: else a ring would only cost the CPU.

    What is sealed after this look is its sealer's to ring for. What a worker is not woken for although it would find
    room waits for the next response; if none comes, the coordinator's nudge is the last to ring.
    """
    if any(map(arena.memory.load_u64, (ORPHANS_AT, PARKED_AT, SPLITS_AT))):
        return True
    if arena.seal_head == arena.seal_tail or arena.promises.cover():
        return False
    outputs = arena.geometry.output_count
    if arena.outputs.count_free() >= outputs // _WORTH_A_RING:
        return True
    return arena.output_shares.held_within(_ON_THEIR_WAY) <= outputs // _MUCH
