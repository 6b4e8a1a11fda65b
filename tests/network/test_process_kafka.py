"""The network process against a real Apache Kafka, which checks what the others let pass."""

from __future__ import annotations

import zlib

import pytest

from tests.network.rig import OLD_TIMESTAMP_MS, Record, Rig
from tests.support.kafka import KafkaCluster, read_back

pytestmark = pytest.mark.kafka

MESSAGE_TOO_LARGE = 10
INVALID_TIMESTAMP = 32
INVALID_RECORD = 87


def test_delivers_every_record_in_order(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic, 2)
    with Rig(kafka.bootstrap_servers) as rig:
        assert rig.know(topic) == 2
        sealed = [rig.seal(topic, n % 2, [Record(b"%d" % n, b"k"), Record(b"+" * 20_000)]) for n in range(20)]
        for index in reversed(sealed):
            rig.compress(index)
        for index in sealed:
            assert rig.result(index).code == 0
        assert rig.counter("retries") == 0
    found = list(read_back(kafka.bootstrap_servers, topic, timeout_s=30))
    for partition in range(2):
        values = [record.value for record in found if record.partition == partition and record.key == b"k"]
        assert values == [b"%d" % n for n in range(partition, 20, 2)]
    assert len(found) == 40


def test_a_compressed_batch_keeps_its_bytes(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic)
    with Rig(kafka.bootstrap_servers) as rig:
        rig.know(topic)
        index = rig.seal(topic, 0, [Record(b"z" * 9000, b"k", OLD_TIMESTAMP_MS)] * 3)
        first_slab = rig.descriptors.sealed(index)
        raw = b"".join(rig.arena.slabs.views(first_slab.first_slab, first_slab.raw_bytes))
        gzip = zlib.compressobj(wbits=31)
        payload = gzip.compress(raw) + gzip.flush()
        rig.compress(index, codec=1, payload=payload)
        assert rig.result(index).code == 0
    [batch] = kafka.dump_log(topic, 0)
    assert batch.all_parsed
    found = list(read_back(kafka.bootstrap_servers, topic, timeout_s=30))
    assert [(record.value, record.timestamp_ms) for record in found] == [(b"z" * 9000, OLD_TIMESTAMP_MS)] * 3


def test_refusals_in_kafkas_own_words(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic, config={"max.message.bytes": "2000"})
    compacted = f"{topic}-c"
    kafka.create_topic(compacted, config={"cleanup.policy": "compact"})
    with Rig(kafka.bootstrap_servers) as rig:
        rig.know(topic)
        rig.know(compacted)
        large = rig.result(rig.send(topic, 0, b"x" * 3000))
        assert large.code == MESSAGE_TOO_LARGE
        assert "a batch of 3" in large.text
        index = rig.seal(compacted, 0, [Record(b"v", b"key"), Record(b"v")])
        rig.compress(index)
        keyless = rig.result(index)
        assert (keyless.code, keyless.record_index) == (INVALID_RECORD, 1)
        assert keyless.text.startswith("INVALID_RECORD: record 1 of 2: ")
        index = rig.seal(compacted, 0, [Record(b"v", b"key", 4_000_000_000_000)])
        rig.compress(index)
        future = rig.result(index)
        assert future.code == INVALID_TIMESTAMP
        assert rig.result(rig.send(topic, 0, b"fits")).code == 0


@pytest.mark.parametrize("acks", [0, 1, -1])
def test_acks(kafka: KafkaCluster, topic: str, acks: int) -> None:
    kafka.create_topic(topic)
    with Rig(kafka.bootstrap_servers, delivery={"acks": acks}) as rig:
        rig.know(topic)
        sealed = [rig.send(topic, 0, b"%d" % n) for n in range(10)]
        offsets = [rig.result(index).base_offset for index in sealed]
        assert offsets == ([-1] * 10 if acks == 0 else list(range(10)))
        rig.until(lambda: len(list(read_back(kafka.bootstrap_servers, topic, timeout_s=30))) == 10, "ten records")


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_topic_that_was_deleted_and_created_again(kafka: KafkaCluster, topic: str, idempotent: bool) -> None:
    """Its id is another one: UNKNOWN_TOPIC_ID leads to fresh metadata (KAFKA-19397). Its log knows no sequences."""
    kafka.create_topic(topic)
    with Rig(kafka.bootstrap_servers, delivery={"enable_idempotence": idempotent}) as rig:
        rig.know(topic)
        for _ in range(3):
            assert rig.result(rig.send(topic, 0, b"old")).code == 0
        kafka.delete_topic(topic)
        kafka.create_topic(topic)
        new = [b"%d" % n for n in range(12)]
        sealed = [rig.send(topic, 0, value) for value in new]
        assert [rig.result(index).code for index in sealed] == [0] * len(new)
    assert [record.value for record in read_back(kafka.bootstrap_servers, topic, timeout_s=30)] == new


def test_leader_moves_and_a_broker_dies(kafka3: KafkaCluster, topic: str) -> None:
    kafka3.create_topic(topic, 1, 3, {"min.insync.replicas": "2"})
    with Rig(kafka3.bootstrap_servers) as rig:
        rig.know(topic)
        sent = 0
        for to_broker in (1, 2, 3):
            kafka3.move_leader(topic, 0, to_broker)
            assert rig.result(rig.send(topic, 0, b"%d" % sent)).code == 0
            sent += 1
        kafka3.kill(3)
        try:
            assert rig.result(rig.send(topic, 0, b"%d" % sent), 60).code == 0
        finally:
            kafka3.start(3)
    values = [record.value for record in read_back(kafka3.bootstrap_servers, topic, timeout_s=30)]
    assert list(dict.fromkeys(values)) == [b"0", b"1", b"2", b"3"]
