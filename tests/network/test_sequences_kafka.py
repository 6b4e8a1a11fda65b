"""Sequences that end at 2147483647 and go on from 0, against a real Apache Kafka (a producer gets there in months)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import pytest

from slabpress.network.sequences import SEQUENCE_MASK, Sequences
from slabpress.shm import layout as at
from tests.network.rig import Rig
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import BatchSummary, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

IDEMPOTENT: Final = {"enable_idempotence": True}


@pytest.fixture(scope="module")
def proxied_kafka() -> Iterator[KafkaCluster]:
    """One broker behind a proxy that may keep its answers."""
    with KafkaCluster(1, proxied=True) as made:
        yield made


def _start_at(rig: Rig, topic: str, sequence: int) -> None:
    """The topic's first partition goes on from there: a broker that knows nothing of a producer takes any sequence."""
    rig.know(topic)
    sequences = Sequences(rig.arena)
    rig.until(lambda: sequences.producer_id is not None, "a producer id")
    assert sequences.producer_id is not None
    start = rig.arena.layout.partitions + rig._partition_index(topic, 0) * at.PARTITION_BYTES
    rig.arena.memory.store_u64(start + at.PRODUCER_ID_AT, sequences.producer_id)
    rig.arena.memory.store_u64(start + at.PRODUCER_EPOCH_AT, sequence << 32)


def _values(cluster: KafkaCluster, topic: str) -> list[bytes | None]:
    return [record.value for record in read_back(cluster.bootstrap_servers, topic, timeout_s=30)]


def _sequences(batches: list[BatchSummary]) -> list[tuple[int, int]]:
    return [(batch.base_sequence, batch.last_sequence) for batch in batches]


def _expected(first: int, sizes: list[int]) -> list[tuple[int, int]]:
    found = []
    for size in sizes:
        found.append((first, (first + size - 1) & SEQUENCE_MASK))
        first = (first + size) & SEQUENCE_MASK
    return found


@pytest.mark.parametrize("before", [5, 6], ids=["inside a batch", "between two batches"])
def test_the_broker_takes_0_for_what_follows_the_last_sequence(kafka: KafkaCluster, topic: str, before: int) -> None:
    kafka.create_topic(topic)
    first = SEQUENCE_MASK + 1 - before
    with Rig(kafka.bootstrap_servers, delivery=IDEMPOTENT) as rig:
        _start_at(rig, topic, first)
        values = [b"%d" % n for n in range(24)]
        sealed = [rig.send(topic, 0, *values[n : n + 3]) for n in range(0, 24, 3)]
        assert [rig.result(index).base_offset for index in sealed] == list(range(0, 24, 3))
        assert rig.counter("epochs_begun") == 0
    assert _values(kafka, topic) == values
    batches = list(kafka.dump_log(topic, 0))
    assert _sequences(batches) == _expected(first, [3] * 8)
    assert {batch.producer_epoch for batch in batches} == {0}
    assert any(base > last for base, last in _sequences(batches)) == (before == 5)


def test_batches_around_the_wrap_whose_answers_were_lost_with_the_process_are_known_again(
    proxied_kafka: KafkaCluster, topic: str
) -> None:
    """The successor sends them with the sequences that the dead process wrote down: the broker keeps one of each."""
    proxied_kafka.create_topic(topic)
    first = SEQUENCE_MASK + 1 - 9
    with Rig(proxied_kafka.proxied_bootstrap_servers, delivery=IDEMPOTENT) as rig:
        _start_at(rig, topic, first)
        values = [b"%d" % n for n in range(28)]
        assert rig.result(rig.send(topic, 0, *values[:4])).code == 0
        proxied_kafka.proxies[1].down.swallow = True
        sealed = [rig.send(topic, 0, *values[n : n + 4]) for n in range(4, 24, 4)]
        wait_until(lambda: _values(proxied_kafka, topic) == values[:24], "all five are in the log", 30)
        rig.kill()
        proxied_kafka.proxies[1].stop_swallowing()
        rig.start()
        assert [rig.result(index).base_offset for index in sealed] == list(range(4, 24, 4))
        assert rig.result(rig.send(topic, 0, *values[24:])).base_offset == 24
        assert rig.counter("epochs_begun") == 0
    assert _values(proxied_kafka, topic) == values
    assert _sequences(list(proxied_kafka.dump_log(topic, 0))) == _expected(first, [4] * 7)


def test_killed_around_the_wrap_it_loses_and_doubles_nothing(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic)
    chance = random.Random(7)
    sizes = [chance.randint(1, 7) for _ in range(40)]
    first = SEQUENCE_MASK + 1 - sum(sizes) // 2
    with Rig(kafka.bootstrap_servers, delivery=IDEMPOTENT) as rig:
        _start_at(rig, topic, first)
        sealed, sent = [], 0
        for n, size in enumerate(sizes):
            sealed.append(rig.send(topic, 0, *(b"%d" % value for value in range(sent, sent + size))))
            sent += size
            if n % 5 == 4:
                rig.kill()
                rig.start()
        assert [rig.result(index).code for index in sealed] == [0] * len(sizes)
        assert rig.counter("epochs_begun") == 0
    assert _values(kafka, topic) == [b"%d" % value for value in range(sum(sizes))]
    assert _sequences(list(kafka.dump_log(topic, 0))) == _expected(first, sizes)
