"""Metadata responses that nobody should write: what they cost, and what is said of them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest

from slabpress.network.metadata_codec import BROKERS_MAX, decode_metadata
from slabpress.network.wire import RESPONSE_MAX_BYTES, WireError
from tests.network.metadata_frames import Response, encoded, large_frame, varint

HEAD_V1 = struct.pack(">i", 42)
HEAD_V9 = struct.pack(">ib", 42, 0) + struct.pack(">i", 0)
BROKERS_V1 = struct.pack(">iih1sih", 1, 1, 1, b"a", 9092, -1) + struct.pack(">i", 1)
BROKERS_V9 = b"\x02" + struct.pack(">i", 1) + b"\x02a" + struct.pack(">i", 9092) + b"\0\0" + b"\0" + b"\0\0\0\1"
TOPIC_V1 = struct.pack(">ihh1sb", 1, 0, 1, b"t", 0)
TOPIC_V9 = b"\x02" + struct.pack(">h", 0) + b"\x02t\0"
PARTITION_V1 = struct.pack(">ihii", 1, 0, 0, 1)
PARTITION_V9 = b"\x02" + struct.pack(">hiii", 0, 0, 1, 5)


def peak_of(call: Callable[[], object]) -> int:
    """The most memory that a call held at a time, its result included."""
    tracemalloc.start()
    try:
        result = call()
        peak = tracemalloc.get_traced_memory()[1]
        del result
    finally:
        tracemalloc.stop()
    return peak


def refused(version: int, frame: bytes) -> str:
    """The words of the error that a frame leads to."""
    with pytest.raises(WireError) as error:
        decode_metadata(version, frame, {"t"})
    return str(error.value)


IN_PARTITION_V1 = HEAD_V1 + BROKERS_V1 + TOPIC_V1 + PARTITION_V1
IN_PARTITION_V9 = HEAD_V9 + BROKERS_V9 + TOPIC_V9 + PARTITION_V9
HOSTILE = {
    "brokers": (1, HEAD_V1 + struct.pack(">i", 2**31 - 1), "2147483647 elements are to follow"),
    "negative array": (1, HEAD_V1 + struct.pack(">i", -5), "a length of -5"),
    "host": (1, HEAD_V1 + struct.pack(">iih", 1, 1, 30_000), "a string of 30000 bytes"),
    "host beyond the end": (1, HEAD_V1 + struct.pack(">iih", 1, 1, 250), "250 bytes are to follow, 16 are there"),
    "negative string": (1, HEAD_V1 + struct.pack(">iih", 1, 1, -9), "a length of -9"),
    "topics": (1, HEAD_V1 + BROKERS_V1 + struct.pack(">i", 2**31 - 1), "2147483647 elements"),
    "partitions": (1, HEAD_V1 + BROKERS_V1 + TOPIC_V1 + struct.pack(">i", 2**31 - 1), "2147483647 elements"),
    "partitions that nearly fit": (1, HEAD_V1 + BROKERS_V1 + TOPIC_V1 + b"\0\0\0\1", "1 elements are to follow, 16"),
    "replicas": (1, IN_PARTITION_V1 + struct.pack(">i", 2**30), "4294967296 bytes are to follow"),
    "compact brokers": (9, HEAD_V9 + varint(2**35 - 1), "34359738366 elements"),
    "compact host": (9, HEAD_V9 + b"\x02" + struct.pack(">i", 1) + varint(2**31), "a string of 2147483647 bytes"),
    "compact topics": (9, HEAD_V9 + BROKERS_V9 + varint(2**32), "4294967295 elements"),
    "compact partitions": (9, HEAD_V9 + BROKERS_V9 + TOPIC_V9 + varint(2**32), "4294967295 elements"),
    "compact replicas": (9, IN_PARTITION_V9 + varint(2**31), "8589934588 bytes are to follow"),
    "endless varint": (9, HEAD_V9 + b"\xff" * 9, "a varint of more than five bytes"),
    "number of tags": (9, IN_PARTITION_V9 + b"\x01\x01\x01" + varint(2**34), "bytes are to follow, 0 are there"),
    "size of a tag": (9, HEAD_V9[:4] + b"\x01\x07" + varint(2**34), "17179869184 bytes are to follow"),
}


@pytest.mark.parametrize(("version", "start", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_length_is_refused_before_it_costs_anything(version: int, start: bytes, words: str) -> None:
    frame = start + bytes(16)
    said = refused(version, frame)
    assert words in said
    assert said.startswith(f"metadata response v{version} of {len(frame)} bytes, at ")
    assert peak_of(lambda: refused(version, frame)) < 64 * 1024


def test_the_largest_topic_takes_8_bytes_a_partition() -> None:
    count = 99_000
    frame = large_frame(count)
    assert RESPONSE_MAX_BYTES * 0.98 < len(frame) <= RESPONSE_MAX_BYTES
    leaders = decode_metadata(12, frame, {"t"}).topics[0].leaders
    assert list(leaders.nodes) == [1 + number % 3 for number in range(count)]
    assert list(leaders.epochs) == list(range(count))
    assert peak_of(lambda: decode_metadata(12, frame, {"t"})) < 8 * count + 64 * 1024


def test_topics_that_nobody_asked_for_take_nothing() -> None:
    """A response of 4 MiB has room for 280,000 of them."""
    count = 30_000
    topics = b"".join(
        struct.pack(">h", 3) + b"\x06%05d" % number + b"\0\x01" + struct.pack(">i", 0) + b"\0"
        for number in range(count)
    )
    frame = HEAD_V9 + BROKERS_V9 + varint(count + 1) + topics + struct.pack(">i", 0) + b"\0"
    assert [topic.name for topic in decode_metadata(9, frame, {"00007"}).topics] == ["00007"]
    assert peak_of(lambda: decode_metadata(9, frame, {"00007"})) < 64 * 1024


def test_brokers_are_limited_in_number_and_name() -> None:
    brokers = tuple((node, f"broker-{node}", 9092, None) for node in range(BROKERS_MAX + 1))
    assert len(decode_metadata(12, encoded(12, Response(brokers=brokers[1:])), set()).brokers) == BROKERS_MAX
    words = refused(12, encoded(12, Response(brokers=brokers)))
    assert f"{BROKERS_MAX + 1} brokers, more than {BROKERS_MAX}" in words
    assert "a string of 256 bytes" in refused(12, encoded(12, Response(brokers=((1, "h" * 256, 9092, None),))))
