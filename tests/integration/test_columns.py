"""Lines of a file and rows of a table into real Kafka, read back by a client that is not ours."""

from __future__ import annotations

import mmap
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest

from slabpress import Producer
from tests.integration.numbered import key_of, timestamp_of, value_of
from tests.support.kafka import KafkaCluster, Record, read_back
from tests.support.reference_batch import java_partition

pytestmark = pytest.mark.kafka

COUNT = 100_000
PARTITIONS = 3


def _read(kafka: KafkaCluster, topic: str) -> dict[int, list[Record]]:
    found = defaultdict(list)
    for record in read_back(kafka.bootstrap_servers, topic, timeout_s=60):
        found[record.partition].append(record)
    return found


def test_the_lines_of_a_file_come_back_once_and_in_the_order_of_each_partition(
    kafka: KafkaCluster, topic: str, tmp_path: Path
) -> None:
    kafka.create_topic(topic, PARTITIONS)
    lines = [b"%d %s" % (number, b"x" * (number % 300)) for number in range(COUNT)]
    path = tmp_path / "lines"
    path.write_bytes(b"\r\n".join(lines))
    with Producer(kafka.bootstrap_servers, compression_type="lz4", workers=2, buffer_memory="8MiB") as producer:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            many = producer.send_lines(topic, mapped, crlf=True)
        assert many.result(60) == COUNT
    found = _read(kafka, topic)
    assert len(found) == PARTITIONS
    numbers = []
    for records in found.values():
        own = [int((record.value or b"").split()[0]) for record in records]
        assert own == sorted(own)
        assert all(record.key is None for record in records)
        assert [record.value for record in records] == [lines[number] for number in own]
        numbers += own
    assert sorted(numbers) == list(range(COUNT))


def test_the_rows_of_a_table_come_back_where_java_puts_their_keys(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic, PARTITIONS)
    numbers = range(COUNT)
    keys, values = [key_of(number) for number in numbers], [value_of(number) for number in numbers]
    stamps = [timestamp_of(number) for number in numbers]
    whole = pa.table({"key": keys, "value": values, "at": pa.array(stamps, pa.timestamp("ms"))})
    chunked = pa.concat_tables([whole.slice(start, 7001) for start in range(0, COUNT, 7001)])
    with Producer(kafka.bootstrap_servers, compression_type="zstd", workers=2, buffer_memory="8MiB") as producer:
        many = producer.send_arrow(topic, chunked, value="value", key="key", timestamp_ms="at")
        assert many.result(60) == COUNT
    found = _read(kafka, topic)
    for partition in range(PARTITIONS):
        expected = [n for n in numbers if java_partition(keys[n], PARTITIONS) == partition]
        assert [(r.key, r.value, r.timestamp_ms) for r in found[partition]] == [
            (keys[n], values[n], stamps[n]) for n in expected
        ]
