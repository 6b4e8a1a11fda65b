"""Leaders move and brokers die while batches are in flight: those that were appended are known to the next leader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from confluent_kafka import KafkaException

from slabpress import Producer
from tests.integration.deaths.records import check
from tests.integration.deaths.sending import Stream
from tests.support.kafka import KafkaCluster
from tests.support.kafka_install import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

PARTITIONS: Final = 3
SETTINGS: Final[dict[str, Any]] = {
    "workers": 1,
    "request_timeout_ms": 5000,
    "max_block_ms": 120_000,
    "buffer_memory": "2MiB",
    "linger_ms": 5,
}


# What is on its way to a leader are slabs, or what workers made of them.
both_kinds = pytest.mark.parametrize("codec", ["lz4", "none"])


@contextmanager
def sending(kafka: KafkaCluster, topic: str, codec: str = "lz4") -> Iterator[Stream]:
    """Records are sent while the block runs, and then counted."""
    kafka.create_topic(topic, PARTITIONS, replication_factor=3, config={"min.insync.replicas": "2"})
    with Producer(kafka.bootstrap_servers, compression_type=codec, **SETTINGS) as producer:
        stream = Stream(producer, topic, PARTITIONS, filling=b"x" * 200)
        with stream.running(pause_s=0.001):
            stream.goes_on(300)
            yield stream
            stream.goes_on(300)
    assert check(kafka, topic, stream.accepted) == stream.sent


def await_sync(kafka: KafkaCluster, topic: str) -> None:
    """Wait until all replicas have everything, so that the next broker may go."""

    def in_sync() -> bool:
        try:
            found = kafka._partitions(topic)
        except KafkaException:
            return False
        return len(found) == PARTITIONS and all(len(part.isrs) == 3 and part.leader > 0 for part in found.values())

    wait_until(in_sync, "all replicas to be in sync", 120)


@both_kinds
def test_the_leader_moves_with_batches_in_flight(kafka3: KafkaCluster, topic: str, codec: str) -> None:
    with sending(kafka3, topic, codec) as stream:
        for partition in range(PARTITIONS):
            kafka3.move_leader(topic, partition, kafka3.leader(topic, partition) % 3 + 1)
            stream.goes_on(100)


def go_and_come_back(kafka: KafkaCluster, topic: str, stream: Stream, end: Callable[[int], None]) -> None:
    """End the leader of partition 0, see that sending goes on without it, and start it again."""
    broker = kafka.leader(topic, 0)
    end(broker)
    try:
        stream.goes_on(300)
    finally:
        kafka.start(broker)
    await_sync(kafka, topic)


@both_kinds
def test_kill_9_of_a_leader(kafka3: KafkaCluster, topic: str, codec: str) -> None:
    with sending(kafka3, topic, codec) as stream:
        go_and_come_back(kafka3, topic, stream, kafka3.kill)


def test_a_leader_that_is_stopped_politely(kafka3: KafkaCluster, topic: str) -> None:
    with sending(kafka3, topic) as stream:
        go_and_come_back(kafka3, topic, stream, kafka3.stop)


def test_a_rolling_restart_of_all_brokers(kafka3: KafkaCluster, topic: str) -> None:
    with sending(kafka3, topic) as stream:
        for broker in kafka3.broker_ids:
            kafka3.stop(broker)
            kafka3.start(broker)
            await_sync(kafka3, topic)
            stream.goes_on(100)
