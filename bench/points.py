"""Which comparisons there are: a point is one setting of all that may be varied, and every side is measured at it.

The headline is one data kind, four topic-partitions, no keys, the sink, and three codecs. The full suite goes from
there along one axis at a time, the others staying as they are (with lz4, the codec that is met most):

- codec: none, gzip, snappy, lz4, zstd:3, zstd:9;
- data: JSON of 100, 1,000 and 10,000 bytes, lines of JSON, lines of CSV;
- partitions: 1, 12 and 200, and 4 and 200 of them with keys;
- broker: a real Kafka, with none, lz4 and zstd:3.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

HEADLINE_CODECS = ("none", "lz4", "zstd:3")
CODECS = ("none", "gzip", "snappy", "lz4", "zstd:3", "zstd:9")
BROKERS = ("sink", "kafka", "mock")


class Point(NamedTuple):
    """What is the same for all sides that are compared.

    Attributes:
        codec: its name, or name:level.
        data: the kind of records (bench/kinds.py).
        partitions: of the topic.
        keyed: whether records have keys.
        broker: sink, kafka or mock.
    """

    codec: str = "lz4"
    data: str = "json-200"
    partitions: int = 4
    keyed: bool = False
    broker: str = "sink"

    @property
    def codec_name(self) -> str:
        """The codec without its level."""
        return self.codec.partition(":")[0]

    @property
    def level(self) -> int | None:
        """The codec's level; None: the client's default."""
        level = self.codec.partition(":")[2]
        return int(level) if level else None


def headline() -> list[Point]:
    """What is measured if nothing else is asked for."""
    return [Point(codec=codec) for codec in HEADLINE_CODECS]


def full() -> list[Point]:
    """Along every axis, each point once."""
    points = [Point(codec=codec) for codec in CODECS]
    points += [Point(data=data) for data in ("json-100", "json-1k", "json-10k", "json-lines", "flights")]
    points += [Point(partitions=partitions) for partitions in (1, 12, 200)]
    points += [Point(partitions=partitions, keyed=True) for partitions in (4, 200)]
    points += [Point(codec=codec, broker="kafka") for codec in HEADLINE_CODECS]
    return points


def chosen(
    codecs: Iterable[str], data: Iterable[str], partitions: Iterable[int], brokers: Iterable[str], *, keyed: bool
) -> list[Point]:
    """Every combination of what was asked for."""
    combinations = product(brokers, data, partitions, codecs)
    return [Point(codec, kind, count, keyed, broker) for broker, kind, count, codec in combinations]
