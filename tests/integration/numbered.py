"""Records that are made from a number, so that a reader can tell what every one must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.support.kafka import Record
from tests.support.reference_batch import java_partition

FIRST_TIMESTAMP_MS = 1_700_000_000_000
_KEYS = 997


def key_of(number: int) -> bytes:
    """One of 997 keys."""
    return b"key-%d" % (number % _KEYS)


def value_of(number: int) -> bytes | None:
    """The number, some text that compresses as JSON does, and now and then nothing at all (a tombstone)."""
    if number % 1009 == 0:
        return None
    return b'{"n":%d,"user":%d,"event":"%s"}' % (number, number * 7919 % 100_003, b"click" * (number % 9))


def headers_of(number: int) -> tuple[tuple[str, bytes | None], ...]:
    """None on most; names that repeat, a value that is null, text that is not ASCII."""
    if number % 5:
        return ()
    return (("n", b"%d" % number), ("n", b"again"), ("größe", None))


def timestamp_of(number: int) -> int:
    """Mostly forwards, every third a little backwards."""
    return FIRST_TIMESTAMP_MS + number - (50 if number % 3 == 0 else 0)


def check_all(read: Iterable[Record], count: int, partitions: int) -> None:
    """Assert that the records 0 .. count-1 are there, once each, in order, byte for byte, where Java puts them."""
    partition_of = [java_partition(key_of(number), partitions) for number in range(_KEYS)]
    expected = [iter(_numbers(partition, partition_of, count)) for partition in range(partitions)]
    seen = 0
    for record in read:
        number = next(expected[record.partition])
        found = (record.key, record.value, record.headers, record.timestamp_ms)
        wanted = (key_of(number), value_of(number), headers_of(number), timestamp_of(number))
        assert found == wanted, f"partition {record.partition} offset {record.offset}: not record {number}"
        seen += 1
    assert seen == count


def _numbers(partition: int, partition_of: list[int], count: int) -> Iterator[int]:
    return (number for number in range(count) if partition_of[number % _KEYS] == partition)
