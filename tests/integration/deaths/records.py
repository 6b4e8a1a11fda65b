"""Records that say who sent them, where to, and which one they are; and the count of what a consumer has read of them.

A sender numbers its records from 0 and goes round the partitions: number n goes to partition n % partitions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tests.support.kafka import KafkaCluster, Record, read_back

READ_TIMEOUT_S = 60.0
_TEXT = random.Random(5).randbytes(500_000).hex().encode()


class Counts(NamedTuple):
    """What was found in a log.

    Attributes:
        records: different ones that are there.
        lost: those that send() has accepted and that are not there.
        doubled: repetitions.
        reordered: those that come after a later one of their sender and partition.
    """

    records: int
    lost: int
    doubled: int
    reordered: int


def value_of(sender: str, partition: int, number: int, filling: bytes = b"") -> bytes:
    """A record's value."""
    return b"%s %d %d %s" % (sender.encode(), partition, number, filling)


def text_of(number: int, size: int) -> bytes:
    """Text that a codec has some work with, for each record another."""
    begin = number * 1_009 % (len(_TEXT) - size)
    return _TEXT[begin : begin + size]


def count(read: Iterable[Record], accepted: Mapping[str, int], attempted: Mapping[str, int] | None = None) -> Counts:
    """Count what is wrong.

    Args:
        read: the records as an independent consumer has read them, each partition in its order.
        accepted: by sender, how many records send() has accepted: they must be there.
        attempted: by sender, how many send() was called with at most: those that are not accepted may be there.
    """
    seen = {sender: bytearray((attempted or accepted)[sender]) for sender in accepted}
    last: dict[tuple[str, int], int] = {}
    doubled = reordered = 0
    for record in read:
        assert record.value is not None
        name, partition, number_text = record.value.split(b" ", 3)[:3]
        sender, number = name.decode(), int(number_text)
        assert record.partition == int(partition), (
            f"offset {record.offset} of {record.partition}: {record.value[:50]!r}"
        )
        assert number < len(seen[sender]), f"{record.value[:50]!r} was never sent"
        if seen[sender][number]:
            doubled += 1
            continue
        seen[sender][number] = 1
        reordered += number < last.get((sender, record.partition), -1)
        last[sender, record.partition] = max(number, last.get((sender, record.partition), -1))
    lost = sum(seen[sender].count(0, 0, accepted[sender]) for sender in accepted)
    return Counts(sum(map(sum, seen.values())), lost, doubled, reordered)


def read_and_count(
    kafka: KafkaCluster,
    topic: str,
    accepted: Mapping[str, int],
    attempted: Mapping[str, int] | None = None,
    timeout_s: float = READ_TIMEOUT_S,
) -> Counts:
    """``count`` of a whole topic, read round the proxies."""
    return count(read_back(kafka.bootstrap_servers, topic, timeout_s=timeout_s), accepted, attempted)


def check(kafka: KafkaCluster, topic: str, accepted: Mapping[str, int], **also: Any) -> int:
    """Assert that every record is there, once, in order; how many there are."""
    found = read_and_count(kafka, topic, accepted, **also)
    assert found == Counts(found.records, lost=0, doubled=0, reordered=0)
    return found.records
