"""The sides of the throughput comparison: how each is started, what it cannot do, and how much it sends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import NamedTuple

from bench import side_confluent, side_slabpress
from bench.job import Job
from bench.points import Point


def python_side(job: Job) -> list[str]:
    """The command line of a side in Python."""
    return [sys.executable, "-m", "bench.side", json.dumps(job._asdict())]


class Peer(NamedTuple):
    """One side.

    Attributes:
        why: where its settings come from.
        package: whose version is told.
        command: its command line.
        share: of the records; less where a client takes ten times as long, so that a round ends.
        keys: whether it can send keys.
        levels: codecs with a level that it can be told, or that is its only one.
    """

    why: str
    package: str
    command: Callable[[Job], list[str]] = python_side
    share: float = 1.0
    keys: bool = True
    levels: tuple[str, ...] | None = None

    def refuses(self, point: Point) -> str | None:
        """Why it is not measured at a point; None: it is."""
        if point.keyed and not self.keys:
            return "has no keys"
        if self.levels is not None and point.level is not None and point.codec not in self.levels:
            return f"cannot be told the level of {point.codec}"
        return None


PEERS = {
    "slabpress send": Peer(side_slabpress.WHY, "slabpress"),
    "slabpress send_many": Peer(side_slabpress.WHY, "slabpress"),
    "slabpress send_lines": Peer(side_slabpress.WHY, "slabpress", keys=False),
    "confluent produce": Peer(side_confluent.WHY, "confluent-kafka"),
    "confluent produce_batch": Peer(side_confluent.WHY, "confluent-kafka"),
}
HEADLINE = tuple(PEERS)
