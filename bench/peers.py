"""The sides of the throughput comparison: how each is started, what it cannot do, and how much it sends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bench import side_aiokafka, side_confluent, side_java, side_kafka_python, side_slabpress
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
        warm_up: the least that it gets to warm up with, as a share of its records.
        settings: what its process does not say itself.
        share: of the records; less where a client takes ten times as long, so that a round ends.
        keys: whether it can send keys.
        mock: whether it gets along with librdkafka's mock broker.
        levels: codecs with a level that it can be told, or that is its only one.
    """

    why: str
    package: str
    command: Callable[[Job], list[str]] = python_side
    warm_up: float = 0.0
    settings: Callable[[Job], dict[str, Any]] | None = None
    share: float = 1.0
    keys: bool = True
    mock: bool = True
    levels: tuple[str, ...] | None = None

    def refuses(self, point: Point) -> str | None:
        """Why it is not measured at a point; None: it is."""
        if point.keyed and not self.keys:
            return "has no keys"
        if point.broker == "mock" and not self.mock:
            return "does not get along with librdkafka's mock broker"
        if self.levels is not None and point.level is not None and point.codec not in self.levels:
            return f"cannot be told the level of {point.codec}"
        return None


PEERS = {
    "slabpress send": Peer(side_slabpress.WHY, "slabpress"),
    "slabpress send_many": Peer(side_slabpress.WHY, "slabpress"),
    "slabpress send_lines": Peer(side_slabpress.WHY, "slabpress", keys=False),
    "confluent produce": Peer(side_confluent.WHY, "confluent-kafka"),
    "confluent produce_batch": Peer(side_confluent.WHY, "confluent-kafka"),
    # Neither can be told a level; zstd's is 3 in both, the others' are in their source and are the same for all points.
    "kafka-python": Peer(side_kafka_python.WHY, "kafka-python", share=0.1, mock=False, levels=("zstd:3",)),
    "aiokafka send_batch": Peer(side_aiokafka.WHY, "aiokafka", share=0.1, levels=("zstd:3",)),
    "java": Peer(
        side_java.WHY, side_java.PACKAGE, side_java.command, side_java.WARM_UP, side_java.settings, mock=False
    ),
}
HEADLINE = tuple(name for name in PEERS if name.startswith(("slabpress", "confluent")))
