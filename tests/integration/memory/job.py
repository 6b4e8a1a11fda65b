"""A user's program that makes one load: ``python job.py ORDER``; ORDER is JSON.

It tells of itself in lines of JSON on its standard output, stops where it says so, and goes on when its standard input
says "go". Without a load it makes the same values, says so, and waits: what it takes then is its own. So this module
imports little, and slabpress only for a load.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING without loading typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from slabpress import MemoryPlan, Pipeline, Producer
    from slabpress.plan import PipelinePlan

WATCHDOG_S = 60
VALUES = 2000


def _line(number: int) -> bytes:
    text = '{"id": %d, "path": "/items/%d", "status": 200, "user": "user-%d", "referrer": "https://shop.example/%d"'
    line = text % (number, number * 31 % 9973, number * 7919 % 100_003, number * 17 % 97)
    return f'{line}, "agent": "Mozilla/5.0 (X11; Linux x86_64)"}}'.ljust(200).encode()


class Values:
    """What a job sends, over and over. All of it is made at once, so that what the job takes for itself stays.

    Args:
        large_bytes: the length of the two large values.

    Attributes:
        lines: 200 bytes of JSON each, which any codec makes much smaller.
        noise: 200 bytes each, which no codec makes smaller.
        halves: 500 bytes each, one half of them noise.
        large_text, large_noise: one value each.
    """

    def __init__(self, large_bytes: int) -> None:
        self.lines = [_line(number) for number in range(VALUES)]
        self.noise = [os.urandom(200) for _ in range(VALUES)]
        self.halves = [os.urandom(250) + line + b"half of the record" * 3 for line in self.lines]
        self.large_text = (b"".join(self.lines) * (large_bytes // (200 * VALUES) + 1))[:large_bytes]
        self.large_noise = os.urandom(large_bytes)


class Job:
    """The job's side of its lines.

    Attributes:
        order: what the job was told: "load", "servers", "settings" of its producers, "large_bytes", and what else
            its load asks for.
        values: what it sends.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.values = Values(order["large_bytes"])
        self._kept: list[bytes] = []

    def tell(self, at: str, **facts: object) -> None:
        """Say where the job is."""
        sys.stdout.write(json.dumps({"at": at, **facts}) + "\n")
        sys.stdout.flush()

    def pause(self, at: str, **facts: object) -> bool:
        """Say where the job is and wait; whether it is to go on."""
        gc.collect()  # what only waits for the collector is no growth
        self.tell(at, **facts)
        return sys.stdin.readline() == "go\n"

    def started(self, plan: MemoryPlan | PipelinePlan, source: Producer | Pipeline) -> None:
        """Say what was planned, and who is to be watched."""
        lines = [(line.name, line.total_bytes) for line in plan.lines]
        pids = dict(source._coordinator._supervisor.processes())
        planned = {figure.name: figure.planned_bytes for figure in source._coordinator.memory()}
        self.tell("started", lines=lines, planned=planned, pids=pids)

    def keep(self, records: int) -> None:
        """Keep what the order says of each record, as a leak would: so that it can be seen that it is seen."""
        self._kept.append(b"x" * (self.order.get("kept_bytes", 0) * records))


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state that other processes bring about."""
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so within {WATCHDOG_S:g} s")
        time.sleep(0.005)


def begin(producer: Producer, topic: str) -> None:
    """Have the topic known, however short the producer's max_block_ms is."""
    from slabpress import BootstrapError, UnknownTopicError

    def sent() -> bool:
        with contextlib.suppress(BootstrapError, UnknownTopicError):
            producer.send(topic, b"first", partition=0).result(WATCHDOG_S)
            return True
        return False

    until(sent, f"{topic} to be known")


def main() -> None:
    """Run the load that the order names, or none."""
    sys.path[0] = __file__.rsplit("/", 4)[0]  # it is run as a file, wherever from
    job = Job(json.loads(sys.argv[1]))
    if job.order["load"] is None:
        job.pause("ready")
        return
    from tests.integration.memory.loads import LOADS
    from tests.integration.memory.rounds import ROUNDS

    {**LOADS, **ROUNDS}[job.order["load"]](job)


if __name__ == "__main__":
    main()
