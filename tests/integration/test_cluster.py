"""Leaders that move, brokers that die or refuse: order and completeness hold. More of it is in deaths/."""

from __future__ import annotations

from typing import Any

import pytest

from slabpress import DeliveryError, Producer
from tests.integration.conftest import MakeProducer
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import wait_until

pytestmark = pytest.mark.kafka

QUICK: dict[str, Any] = {
    "workers": 1,
    "request_timeout_ms": 3000,
    "delivery_timeout_ms": 60_000,
    "buffer_memory": "8MiB",
}


def numbers_by_partition(kafka: KafkaCluster, topic: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for record in read_back(kafka.bootstrap_servers, topic, timeout_s=60):
        assert record.value is not None
        found.setdefault(record.partition, []).append(int(record.value))
    return found


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_every_acks_setting_delivers(kafka: KafkaCluster, topic: str, acks: object) -> None:
    kafka.create_topic(topic, 2)
    with Producer(kafka.bootstrap_servers, acks=acks, **QUICK) as producer:
        handles = [producer.send(topic, b"%d" % number, partition=number % 2) for number in range(2000)]
        producer.flush()
        offsets = {handle.result(0).offset for handle in handles}
    # Nobody is asked with acks=0, so nobody says where a record went.
    assert offsets == ({None} if acks == 0 else set(range(1000)))

    def all_there() -> bool:
        return numbers_by_partition(kafka, topic) == {0: [*range(0, 2000, 2)], 1: [*range(1, 2000, 2)]}

    wait_until(all_there, "all records to be in the log", 30)


@pytest.mark.timeout(240)
def test_a_broker_that_dies_is_routed_around_and_others_go_on(kafka3: KafkaCluster, topic: str) -> None:
    """Records of the dead leader's partition wait for the new leader; each is there once, in order."""
    kafka3.create_topic(topic, 6, replication_factor=3)
    victim = kafka3.leader(topic, 0)
    with Producer(kafka3.bootstrap_servers, **QUICK) as producer:
        producer.send_many(topic, [b"%d" % number for number in range(600)], keys=_keys(0, 600))
        producer.flush(60)
        kafka3.kill(victim)
        try:
            producer.send_many(topic, [b"%d" % number for number in range(600, 1200)], keys=_keys(600, 1200))
            producer.flush(60)
        finally:
            kafka3.start(victim)
    found = numbers_by_partition(kafka3, topic)
    assert sorted(number for numbers in found.values() for number in numbers) == [*range(1200)]
    assert all(numbers == sorted(numbers) for numbers in found.values())


def _keys(start: int, stop: int) -> list[bytes]:
    return [b"%d" % (number % 97) for number in range(start, stop)]


def test_a_batch_that_the_broker_refuses_fails_alone_with_the_brokers_words(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    kafka.create_topic(topic, 1, config={"cleanup.policy": "compact"})
    producer = make_producer(kafka.bootstrap_servers, **QUICK)
    producer.send(topic, b"good", key=b"k").result(30)
    with pytest.raises(DeliveryError, match=r"INVALID_RECORD.*record 0 of the batch's 1 is at fault") as caught:
        producer.send(topic, b"a compacted topic needs keys").result(30)
    assert (caught.value.name, caught.value.code, caught.value.retriable) == ("INVALID_RECORD", 87, False)
    producer.send(topic, b"good again", key=b"k").result(30)
    producer.flush()  # the failure was looked at, so nothing is raised


def test_a_failure_that_nobody_looked_at_is_raised_once_by_flush(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    kafka.create_topic(topic, 1, config={"max.message.bytes": "1000"})
    producer = make_producer(kafka.bootstrap_servers, **QUICK)
    producer.send(topic, b"x" * 5000)
    with pytest.raises(DeliveryError, match=r"1 records were not delivered; the first error: .*MESSAGE_TOO_LARGE"):
        producer.flush(30)
    producer.flush(30)
    producer.send(topic, b"small").result(30)
