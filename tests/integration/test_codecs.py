"""A million records through each codec into real Kafka, read back by clients that are not ours."""

from __future__ import annotations

from typing import Any

import pytest

from slabpress import Producer
from tests.integration.numbered import check_all, headers_of, key_of, timestamp_of, value_of
from tests.support.kafka import KafkaCluster, read_back

pytestmark = pytest.mark.kafka

MILLION = 1_000_000
BLOCK = 20_000
PARTITIONS = 6
# What the job's records may do beside Kafka's: 32 MiB of arena, two workers.
SETTINGS: dict[str, Any] = {"buffer_memory": "32MiB", "workers": 2, "linger_ms": 50}


def send_numbered(producer: Producer, topic: str, count: int) -> None:
    """Send the numbered records in blocks."""
    for start in range(0, count, BLOCK):
        numbers = range(start, min(start + BLOCK, count))
        producer.send_many(
            topic,
            [value_of(number) for number in numbers],
            keys=[key_of(number) for number in numbers],
            headers=[headers_of(number) for number in numbers],
            timestamps_ms=[timestamp_of(number) for number in numbers],
        )
    producer.flush()


# Fewer records than repeat anything that compresses.
FEW = 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_million_records_come_back_byte_for_byte_in_order(kafka: KafkaCluster, topic: str, codec: str) -> None:
    """Count, order per topic-partition, keys, headers, timestamps; and the log's batches carry the codec."""
    kafka.create_topic(topic, PARTITIONS)
    with Producer(kafka.bootstrap_servers, compression_type=codec, **SETTINGS) as producer:
        send_numbered(producer, topic, MILLION)
    check_all(read_back(kafka.bootstrap_servers, topic, timeout_s=120), MILLION, PARTITIONS)
    in_log = 0
    for partition in range(PARTITIONS):
        for batch in kafka.dump_log(topic, partition):
            assert batch.is_valid
            assert batch.all_parsed
            # A batch of a record or two, sealed by the clock on a busy machine, may not shrink: it is sent raw (law 5).
            assert batch.codec == codec or (batch.codec == "none" and batch.count <= FEW)
            in_log += batch.count
    assert in_log == MILLION
    kafka.delete_topic(topic)
