"""Every state word of the arena, and who may change it: nothing assigns a state that is not in these tables.

The ownership table. C is the coordinator (where results are taken in, two threads: its own and the producer's callback
thread, under the locks of pipeline/intake.py), W the worker that was admitted to the batch, A whoever holds the
admission lock, N the network process. While a state lasts, its owner alone may write the thing.

    batch        owner  leaves to           what the owner does
    FREE         C      OPEN                claims it for a topic-partition
    OPEN         C      SEALED, READY, FREE    appends records; in a direct arena, where nothing is compressed, it is
                                            READY at once; FREE when it closes without one
    SEALED       A      COMPRESSING, PARKED    claims its output buffers, in seal order (laws 4 and 6), or sets it
                                            aside while its leader has its share of them (shm/shares.py)
    PARKED       A      COMPRESSING         claims its output buffers, before any SEALED one
    COMPRESSING  W      READY               fills the output buffers, then frees the slabs (law 7)
    READY        N      IN_FLIGHT, DONE     sends it; DONE when it expires first
    IN_FLIGHT    N      READY, DONE, OVERSIZE, PARTIAL    READY to try again, DONE with a result, OVERSIZE if it
                                            must be split, PARTIAL with the result of a piece that is not the last
    OVERSIZE     A      COMPRESSING         claims output buffers for a piece (shm/splits.py)
    PARTIAL      C      OVERSIZE            takes in the piece's result
    DONE         C      REPORTING, FREE     tells the handles the result
    REPORTING    C      FREE                runs the callbacks: a slow one holds descriptors, not memory (law 1)

    slab         owner  leaves to           output buffer  owner  leaves to
    FREE         C      OPEN                FREE           A      FILLING
    OPEN         C      SEALED, READY       FILLING        W      READY, FREE (what compression saved)
    SEALED       A      COMPRESSING         READY          N      IN_FLIGHT, FREE
    COMPRESSING  W      FREE                IN_FLIGHT      N      READY, FREE
    READY        N      IN_FLIGHT, FREE     } in a direct arena, where slabs are what is sent
    IN_FLIGHT    N      READY, FREE         }

The source of a split batch, the payload that was too large, stays READY until the last piece has its result.

A batch that has its result gives its output buffers back before it is DONE: its descriptor's first output is NONE
from then on, and a READY or IN_FLIGHT batch without one is decided already (network/batches.py says why).

A slab and an output buffer follow the batch that holds them, so a dead process's blocks are found through the
batches it owned. COMPRESSING survives the death of W: the batch keeps its output buffers and another worker
takes it over (its descriptor's worker word says ORPHAN), so nobody waits for what a dead process holds.
"""

from __future__ import annotations

from typing import Final

FREE: Final = 0
OPEN: Final = 1
SEALED: Final = 2
COMPRESSING: Final = 3
READY: Final = 4
IN_FLIGHT: Final = 5
DONE: Final = 6
REPORTING: Final = 7
OVERSIZE: Final = 8
PARTIAL: Final = 9
PARKED: Final = 10
BATCH_STATES: Final = (
    "free",
    "open",
    "sealed",
    "compressing",
    "ready",
    "in_flight",
    "done",
    "reporting",
    "oversize",
    "partial",
    "parked",
)
# Sealed, and without a result: what a network process that takes over has to do with.
UNDER_WAY: Final = frozenset({SEALED, PARKED, COMPRESSING, READY, IN_FLIGHT, OVERSIZE, PARTIAL})
BATCH_TRANSITIONS: Final[dict[int, frozenset[int]]] = {
    FREE: frozenset({OPEN}),
    OPEN: frozenset({SEALED, READY, FREE}),
    SEALED: frozenset({COMPRESSING, PARKED}),
    PARKED: frozenset({COMPRESSING}),
    COMPRESSING: frozenset({READY}),
    READY: frozenset({IN_FLIGHT, DONE}),
    IN_FLIGHT: frozenset({READY, DONE, OVERSIZE, PARTIAL}),
    OVERSIZE: frozenset({COMPRESSING}),
    PARTIAL: frozenset({OVERSIZE}),
    DONE: frozenset({REPORTING, FREE}),
    REPORTING: frozenset({FREE}),
}

SLAB_FREE: Final = 0
SLAB_OPEN: Final = 1
# Whoever sends need not know which of the two kinds of block it is: these are the numbers of OUTPUT_*.
SLAB_READY: Final = 2
SLAB_IN_FLIGHT: Final = 3
SLAB_SEALED: Final = 4
SLAB_COMPRESSING: Final = 5
SLAB_STATES: Final = ("free", "open", "ready", "in_flight", "sealed", "compressing")
SLAB_TRANSITIONS: Final[dict[int, frozenset[int]]] = {
    SLAB_FREE: frozenset({SLAB_OPEN}),
    SLAB_OPEN: frozenset({SLAB_SEALED, SLAB_READY}),
    SLAB_READY: frozenset({SLAB_IN_FLIGHT, SLAB_FREE}),
    SLAB_IN_FLIGHT: frozenset({SLAB_READY, SLAB_FREE}),
    SLAB_SEALED: frozenset({SLAB_COMPRESSING}),
    SLAB_COMPRESSING: frozenset({SLAB_FREE}),
}

OUTPUT_FREE: Final = 0
OUTPUT_FILLING: Final = 1
OUTPUT_READY: Final = SLAB_READY
OUTPUT_IN_FLIGHT: Final = SLAB_IN_FLIGHT
OUTPUT_STATES: Final = ("free", "filling", "ready", "in_flight")
OUTPUT_TRANSITIONS: Final[dict[int, frozenset[int]]] = {
    OUTPUT_FREE: frozenset({OUTPUT_FILLING}),
    OUTPUT_FILLING: frozenset({OUTPUT_READY, OUTPUT_FREE}),
    OUTPUT_READY: frozenset({OUTPUT_IN_FLIGHT, OUTPUT_FREE}),
    OUTPUT_IN_FLIGHT: frozenset({OUTPUT_READY, OUTPUT_FREE}),
}

# A slab that is COMPRESSING and an output buffer that is FILLING carry their worker's index above the state, so
# that what a dead worker had not yet given away is told from what a live one is just giving away.
STATE_MASK: Final = 0xFF
_OWNER_SHIFT: Final = 8


def owned(state: int, worker: int) -> int:
    """The word of a slab or output buffer in ``state`` that belongs to ``worker``."""
    return state | worker << _OWNER_SHIFT


# A topic entry has two words, one writer each: the coordinator says whether it wants the topic, the network
# process says what it found.
TOPIC_UNUSED: Final = 0
TOPIC_WANTED: Final = 1

# The life of a child, written by the child into its line of the control block.
PROCESS_ABSENT: Final = 0
PROCESS_STARTING: Final = 1
PROCESS_RUNNING: Final = 2
PROCESS_STOPPED: Final = 3

# A batch's ``worker`` word when the worker that compressed it died.
ORPHAN: Final = 0xFFFF


def check_transition(table: dict[int, frozenset[int]], names: tuple[str, ...], old: int, new: int) -> None:
    """Raise ValueError unless ``table`` allows ``old`` to become ``new``."""
    if new not in table.get(old, frozenset()):
        raise ValueError(f"no transition from {names[old]} to {names[new]}")
