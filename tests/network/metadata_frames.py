"""Metadata responses: as kio writes them, and of a size or kind that takes bytes to write."""

from __future__ import annotations

import datetime
import random
import struct
from typing import Any, NamedTuple
from uuid import UUID

from kio.schema.errors import ErrorCode

from tests.network.fake_broker import METADATA, build, schema, write

ID = UUID("00000000-0000-0000-0000-0000000000ab")


class Partition(NamedTuple):
    """What a response says of a partition."""

    number: int
    leader: int
    epoch: int = 0
    replicas: tuple[int, ...] = (1, 2, 3)
    offline: tuple[int, ...] = ()


class Topic(NamedTuple):
    """What a response says of a topic."""

    name: str | None
    topic_id: UUID | None
    error: ErrorCode
    partitions: tuple[Partition, ...]


class Response(NamedTuple):
    """What a response says."""

    throttle_ms: int = 0
    error: ErrorCode = ErrorCode.none
    brokers: tuple[tuple[int, str, int, str | None], ...] = ((1, "a", 9092, None),)
    cluster_id: str | None = "cluster"
    topics: tuple[Topic, ...] = ()


def encoded(version: int, response: Response) -> bytes:
    """The response as kio writes it, without its length."""
    module = schema(METADATA, version, "response")
    body = build(
        module.MetadataResponse,
        throttle_time=datetime.timedelta(milliseconds=response.throttle_ms),
        error_code=response.error,
        brokers=tuple(
            build(module.MetadataResponseBroker, node_id=node, host=host, port=port, rack=rack)
            for node, host, port, rack in response.brokers
        ),
        cluster_id=response.cluster_id,
        controller_id=3,
        topics=tuple(_topic(module, topic) for topic in response.topics),
        cluster_authorized_operations=77,
    )
    return struct.pack(">i", 42) + (b"\0" if version >= 9 else b"") + write(body)


def _topic(module: Any, topic: Topic) -> Any:
    return build(
        module.MetadataResponseTopic,
        error_code=topic.error,
        name=topic.name,
        topic_id=topic.topic_id,
        is_internal=False,
        partitions=tuple(
            build(
                module.MetadataResponsePartition,
                error_code=ErrorCode.none,
                partition_index=p.number,
                leader_id=p.leader,
                leader_epoch=p.epoch,
                replica_nodes=p.replicas,
                isr_nodes=p.replicas[:1],
                offline_replicas=p.offline,
            )
            for p in topic.partitions
        ),
        topic_authorized_operations=5,
    )


def varint(number: int) -> bytes:
    """A length of the flexible versions."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def large_frame(partition_count: int, correlation_id: int = 42, port: int = 9092) -> bytes:
    """A response of version 12, from node 1, with topic t; kio would take long to write it.

    Its partitions come in any order, have three replicas, epochs like their numbers, and leaders 1, 2, 3, 1 and so on.
    """
    numbers = list(range(partition_count))
    random.Random(1).shuffle(numbers)
    head = struct.pack(">ibi", correlation_id, 0, 0)
    broker = struct.pack(">i", 1) + b"\x0a127.0.0.1" + struct.pack(">i", port) + b"\0\0"
    topic = struct.pack(">h", 0) + b"\x02t" + ID.bytes + b"\0"
    replicas = b"\x04" + struct.pack(">iii", 1, 2, 3)
    partitions = b"".join(
        struct.pack(">hiii", 0, number, 1 + number % 3, number) + replicas + replicas + b"\x01\0" for number in numbers
    )
    return (
        head + b"\x02" + broker + b"\0" + struct.pack(">i", 1)
        + b"\x02" + topic + varint(partition_count + 1) + partitions + struct.pack(">i", 0) + b"\0\0"
    )  # fmt: skip
