"""Large records and many topic-partitions in a small arena."""

from __future__ import annotations

import random
from typing import Any

import pytest

from slabpress import Producer, RecordTooLargeError
from tests.support.kafka import KafkaCluster, read_back

pytestmark = pytest.mark.kafka

SMALL: dict[str, Any] = {"buffer_memory": "32MiB", "workers": 2}
LARGE_BYTES = 900 * 1000


def test_a_record_of_900_kb_goes_through_a_32_mib_arena(kafka: KafkaCluster, topic: str) -> None:
    """Both kinds: one that compresses, and one that does not and is sent raw (law 5)."""
    values = [b"a" * LARGE_BYTES, random.Random(1).randbytes(LARGE_BYTES)]
    with Producer(kafka.bootstrap_servers, compression_type="zstd", **SMALL) as producer:
        deliveries = [producer.send(topic, value).result(60) for value in values]
    assert [delivery.offset for delivery in deliveries] == [0, 1]
    assert [record.value for record in read_back(kafka.bootstrap_servers, topic, timeout_s=60)] == values
    assert [batch.codec for batch in kafka.dump_log(topic, 0)] == ["zstd", "none"]


def test_what_can_never_fit_is_refused_and_harms_no_neighbour(kafka: KafkaCluster, topic: str) -> None:
    with Producer(kafka.bootstrap_servers, **SMALL) as producer:
        before = producer.send(topic, b"before")
        with pytest.raises(
            RecordTooLargeError, match=r"takes 2000013 bytes .* more than max_request_size = 1048576 bytes"
        ):
            producer.send(topic, b"x" * 2_000_000)
        after = producer.send(topic, b"after")
        assert [before.result(60).offset, after.result(60).offset] == [0, 1]


@pytest.mark.timeout(300)
def test_a_thousand_topic_partitions_in_a_32_mib_arena(kafka: KafkaCluster, topic: str) -> None:
    """More open batches than slabs: pressure seals the fullest, nothing is lost, order holds in each."""
    partitions, rounds = 1000, 40
    kafka.create_topic(topic, partitions)
    with Producer(kafka.bootstrap_servers, compression_type="lz4", linger_ms=200, **SMALL) as producer:
        for number in range(rounds):
            for partition in range(partitions):
                producer.send(topic, b"%d/%d " % (partition, number) + b"." * 500, partition=partition)
        producer.flush()
    seen: dict[int, list[bytes]] = {}
    for record in read_back(kafka.bootstrap_servers, topic, timeout_s=120):
        assert record.value is not None
        seen.setdefault(record.partition, []).append(record.value.split()[0])
    assert len(seen) == partitions
    for partition, values in seen.items():
        assert values == [b"%d/%d" % (partition, number) for number in range(rounds)]
    kafka.delete_topic(topic)
