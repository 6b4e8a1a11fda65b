"""Writing Produce requests, versions 3 to 13: our bytes around the batches, which stay where they are.

kio takes 7 us a topic-partition to write what is some 20 bytes beside the batch, and a record that comes alone waits
for that; a tenth of it is enough for a writer that knows one request. What kio writes is what the tests compare with.

    before 9    lengths of 2 or 4 bytes
    from 9 on   compact: unsigned varints of the length + 1, and an empty set of tagged fields at every end (KIP-482)
    from 13 on  topics by their id (KIP-516)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from slabpress._native import write_produce
from slabpress.network.wire import ProduceTopic, Request

FIRST_WITH_TOPIC_IDS: Final = 13
FIRST_FLEXIBLE: Final = 9
_API: Final = 0
_FRAME_BYTES: Final = 12  # the frame's length, API, version, correlation id
_BODY: Final = struct.Struct(">hi")  # acks, timeout
_NULL_STRING: Final = b"\xff\xff"
_COMPACT_NULL: Final = b"\x00"
_NO_TAGS: Final = b"\x00"


def encode_produce(
    version: int,
    correlation_id: int,
    client_id: str,
    acks: int,
    timeout_ms: int,
    topics: Sequence[ProduceTopic],
) -> Request:
    """A gathered Produce request: its parts alternate between our bytes and views of what is sent.

    Args:
        version: 3 to 13; from 13 on every topic has its id.
        correlation_id: names the request in its response.
        client_id: names us in the broker's logs.
        acks: -1, 0 or 1.
        timeout_ms: how long the broker may wait for its replicas.
        topics: the batches.
    """
    parts, size = write_produce(
        _beginning(version, client_id, acks, timeout_ms),
        version >= FIRST_FLEXIBLE,
        _API,
        version,
        correlation_id,
        [(_topic(topic, version), topic.partitions) for topic in topics],
    )
    return Request(parts, size)


@lru_cache(64)
def _beginning(version: int, client_id: str, acks: int, timeout_ms: int) -> bytes:
    """All before the topics, with room for the frame: the same for every request of a producer.

    The header's client id is never compact; a flexible header ends with tagged fields (KIP-482).
    """
    flexible = version >= FIRST_FLEXIBLE
    name = client_id.encode()
    client = struct.pack(">h", len(name)) + name + (_NO_TAGS if flexible else b"")
    transactional_id = _COMPACT_NULL if flexible else _NULL_STRING
    return bytes(_FRAME_BYTES) + client + transactional_id + _BODY.pack(acks, timeout_ms)


def _topic(topic: ProduceTopic, version: int) -> bytes:
    if version >= FIRST_WITH_TOPIC_IDS:
        if topic.topic_id is None:
            raise ValueError(f"topic {topic.name!r} has no id, which Produce v{version} wants")
        return topic.topic_id.int.to_bytes(16, "big")
    return _name(topic.name, version)


@lru_cache(64)
def _name(topic: str, version: int) -> bytes:
    name = topic.encode()
    return (unsigned_varint(len(name) + 1) if version >= FIRST_FLEXIBLE else struct.pack(">h", len(name))) + name


def unsigned_varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first; the high bit says that more follow."""
    if value < 0x80:
        return value.to_bytes(1, "big")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
