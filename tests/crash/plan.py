"""Which faults come when: decided by the seed before the first one.

Two plans run side by side: one for the brokers, of which at most one is in trouble at a time, and one for everything
else. A fault that cannot be done when its time has come waits for a while, and is left out if that does not help.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

WORKER_KILL: Final = "kill -9 of a worker"
NETWORK_KILL: Final = "kill -9 of the network process"
JOB_KILL: Final = "kill -9 of the job"
STEP_KILL: Final = "kill -9 of a child by itself, at a named step"
JOB_WORKER_KILL: Final = "kill -9 of the job, then of an orphaned worker"
JOB_END: Final = "job ends by itself"
WORKER_STOP: Final = "worker stopped for a while"
NETWORK_STOP: Final = "network process stopped for a while"
JOB_STOP: Final = "job stopped for a while"
CUT: Final = "connections cut"
CUT_AMID: Final = "connections cut amid a message"
LOST_ACKS: Final = "acknowledgements lost"
DELAY: Final = "bytes delayed"
THROTTLE: Final = "bytes throttled"
HALF_OPEN: Final = "connections silent"
BROKER_KILL: Final = "kill -9 of a broker"
BROKER_END: Final = "broker stopped politely"
BROKER_PAUSE: Final = "broker paused"
LEADER_MOVE: Final = "leaders moved"

# By the short names that the command line takes; how often each comes, compared to the others.
KINDS: Final[dict[str, tuple[str, int]]] = {
    "worker-kill": (WORKER_KILL, 4),
    "network-kill": (NETWORK_KILL, 4),
    "job-kill": (JOB_KILL, 2),
    "job-worker-kill": (JOB_WORKER_KILL, 1),
    "job-end": (JOB_END, 1),
    "worker-stop": (WORKER_STOP, 2),
    "network-stop": (NETWORK_STOP, 2),
    "job-stop": (JOB_STOP, 1),
    "cut": (CUT, 3),
    "cut-amid": (CUT_AMID, 3),
    "lost-acks": (LOST_ACKS, 3),
    "delay": (DELAY, 2),
    "throttle": (THROTTLE, 2),
    "half-open": (HALF_OPEN, 2),
    "broker-kill": (BROKER_KILL, 3),
    "broker-end": (BROKER_END, 2),
    "broker-pause": (BROKER_PAUSE, 3),
    "leader-move": (LEADER_MOVE, 2),
}
_OF_BROKERS: Final = ("broker-kill", "broker-end", "broker-pause", "leader-move")
_FIRST_S: Final = 4.0
_GAPS_S: Final = (0.3, 4.0)
_BROKER_GAPS_S: Final = (1.0, 12.0)


class Fault(NamedTuple):
    """One fault to come.

    Attributes:
        kind: which.
        gap_s: how long after the one before.
        which: 0 .. 1, chooses the victim.
        for_s: how long it lasts.
        detail: 0 .. 1, for what else there is to choose.
    """

    kind: str
    gap_s: float
    which: float
    for_s: float
    detail: float


def faults(seed: int, kinds: Sequence[str], *, of_brokers: bool) -> Iterator[Fault]:
    """The endless plan of one side, of these kinds (short names)."""
    chosen = [KINDS[name] for name in kinds if (name in _OF_BROKERS) == of_brokers]
    rng = random.Random(f"{seed}/{of_brokers}/{','.join(sorted(kinds))}")
    gaps_s = _BROKER_GAPS_S if of_brokers else _GAPS_S
    wait_s = _FIRST_S
    while chosen:
        (kind, _) = rng.choices(chosen, [weight for _, weight in chosen])[0]
        # Mostly short: what lasts longer than the timeouts of clients and brokers is rare.
        yield Fault(kind, wait_s, rng.random(), rng.choice((0.5, 1.0, 2.0, 4.0, 9.0)) * (0.5 + rng.random()),
                    rng.random())  # fmt: skip
        wait_s = rng.uniform(*gaps_s)
