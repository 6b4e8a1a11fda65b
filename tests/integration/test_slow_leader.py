"""A broker that hangs keeps its share of the arena, and no more: what goes to the others goes on."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from slabpress import BufferFullError, Producer
from tests.integration.conftest import MakeProducer
from tests.support.brokers import require_kafka
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import wait_until

WAIT_S: Final = 60.0
# Nobody gives up on the broker: without acknowledgements nothing but its share keeps its batches from taking all.
SMALL: Final[dict[str, Any]] = {
    "buffer_memory": "1MiB",
    "linger_ms": 5,
    "request_timeout_ms": 60_000,
    "delivery_timeout_ms": 120_000,
    "max_block_ms": 60_000,
}
SIZE: Final = 1024
# Compressed, it is as long: what fits into either kind of arena is as much.
NOISE: Final = random.Random(7).randbytes(1024 * SIZE)


def value_of(number: int) -> bytes:
    """A record's value."""
    place = number * SIZE % len(NOISE)
    return NOISE[place : place + SIZE]


@pytest.fixture(params=["none", "lz4"], ids=["direct", "compressing"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """With both kinds of arena: a leader holds slabs, or output buffers and slabs."""
    return SMALL | {"compression_type": request.param}


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Three brokers; each partition is on one of them only."""
    require_kafka()
    with KafkaCluster(3) as made:
        yield made


class Topics:
    """A topic of six partitions.

    Attributes:
        victim: the broker that is going to hang.
        stuck, healthy: its partitions, and the others'.
    """

    def __init__(self, cluster: KafkaCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        cluster.create_topic(name, 6)
        leaders = {partition: cluster.leader(name, partition) for partition in range(6)}
        self.victim = leaders[0]
        self.stuck = [partition for partition, leader in leaders.items() if leader == self.victim]
        self.healthy = [partition for partition, leader in leaders.items() if leader != self.victim]

    def counts(self) -> Counter[int]:
        """Records in each partition."""
        servers = self.cluster.bootstrap_servers
        return Counter(record.partition for record in read_back(servers, self.name, timeout_s=WAIT_S))


def _begin(producer: Producer, topics: Topics) -> None:
    for partition in range(6):
        producer.send(topics.name, b"first", partition=partition)
    producer.flush(WAIT_S)


@contextlib.contextmanager
def _hanging(topics: Topics) -> Iterator[None]:
    """The victim hangs while the block runs."""
    topics.cluster.pause(topics.victim)
    try:
        yield
    finally:
        topics.cluster.resume(topics.victim)


class Flood:
    """A thread that sends to one partition, as fast as it can, until it is told to stop.

    Attributes:
        sent: how many records were accepted.
    """

    def __init__(self, producer: Producer, topics: Topics, partition: int) -> None:
        self._producer, self._topic, self._partition = producer, topics.name, partition
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            self._producer.send(self._topic, value_of(self.sent), partition=self._partition)
            self.sent += 1

    def is_alive(self) -> bool:
        """Whether it has neither stopped nor failed."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Have the record that is being sent be the last one."""
        self._over.set()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def _flooded(producer: Producer, topics: Topics) -> Iterator[list[Flood]]:
    """The victim hangs while the block runs, and a thread for each of its partitions waits for room."""
    floods: list[Flood] = []
    with _hanging(topics):
        try:
            for partition in topics.stuck:
                floods.append(Flood(producer, topics, partition))  # noqa: PERF401 - to be stopped if the next fails
            line = producer._session.sender.line
            wait_until(lambda: len(line.turns) == len(floods), "the threads to wait", WAIT_S, every_s=0.01)
            yield floods
            assert all(flood.is_alive() for flood in floods)
        finally:
            for flood in floods:
                flood.stop()
    for flood in floods:
        flood.join()


def _send_round_the_healthy(producer: Producer, topics: Topics, records: int) -> None:
    for number in range(records):
        producer.send(topics.name, value_of(number), partition=topics.healthy[number % len(topics.healthy)])


def _check_counts(topics: Topics, healthy: int, floods: list[Flood]) -> None:
    """So many records went to the healthy partitions, and to the others what was accepted, after each one's first."""
    counts = topics.counts()
    assert sum(counts[partition] for partition in topics.healthy) == healthy + len(topics.healthy)
    assert [counts[partition] - 1 for partition in topics.stuck] == [flood.sent for flood in floods]


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_sends_for_healthy_leaders_go_on_while_another_thread_waits_for_one_that_hangs(
    cluster: KafkaCluster, topic: str, make_producer: MakeProducer, settings: dict[str, Any]
) -> None:
    topics = Topics(cluster, topic)
    producer = make_producer(cluster.bootstrap_servers, **settings)
    _begin(producer, topics)
    with _flooded(producer, topics) as floods:
        assert all(turn.held_back >= 0 for turn in list(producer._session.sender.line.turns))
        _send_round_the_healthy(producer, topics, 20_000)  # many times what the arena holds
        last = [producer.send(topics.name, value_of(0), partition=partition) for partition in topics.healthy]
        for handle in last:
            assert handle.result(WAIT_S).topic == topic
    producer.flush(WAIT_S)
    _check_counts(topics, 20_000 + len(last), floods)


@pytest.mark.kafka
@pytest.mark.timeout(180)
@pytest.mark.parametrize("many", [False, True], ids=["send", "send_many"])
def test_records_without_a_key_go_around_a_leader_that_hangs(
    cluster: KafkaCluster, topic: str, make_producer: MakeProducer, settings: dict[str, Any], many: bool
) -> None:
    topics = Topics(cluster, topic)
    producer = make_producer(cluster.bootstrap_servers, **settings)
    _begin(producer, topics)
    with _hanging(topics):
        for call in range(200):
            values = [value_of(call * 100 + number) for number in range(100)]
            if many:
                producer.send_many(topics.name, values)
            else:
                for value in values:
                    producer.send(topics.name, value)
    producer.flush(WAIT_S)
    counts = topics.counts()
    assert sum(counts.values()) == 20_000 + 6
    assert sum(counts[partition] for partition in topics.healthy) > 18_000


def _send_for_ever(producer: Producer, topics: Topics) -> None:
    for number in itertools.count():
        producer.send(topics.name, value_of(number), partition=topics.stuck[0])


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_what_waits_too_long_for_a_leader_that_hangs_says_which(
    cluster: KafkaCluster, topic: str, make_producer: MakeProducer, settings: dict[str, Any]
) -> None:
    topics = Topics(cluster, topic)
    producer = make_producer(cluster.bootstrap_servers, **(settings | {"max_block_ms": 300}))
    _begin(producer, topics)
    with (
        _hanging(topics),
        pytest.raises(BufferFullError, match=rf"broker {topics.victim} leads hold their share"),
    ):
        _send_for_ever(producer, topics)
    producer.flush(WAIT_S)


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_beside_a_leader_that_hangs_nobody_waits_for_an_hours_linger(
    cluster: KafkaCluster, topic: str, make_producer: MakeProducer, settings: dict[str, Any]
) -> None:
    """What the stuck leader holds is on its way nowhere: with no room left, the healthy ones' batches are sealed."""
    topics = Topics(cluster, topic)
    hour = settings | {"linger_ms": 3_600_000, "batch_size": "64KiB", "delivery_timeout_ms": 2 * 3_600_000}
    producer = make_producer(cluster.bootstrap_servers, **hour)
    _begin(producer, topics)
    with _flooded(producer, topics) as floods:
        # Many times what is left: each of these waits until room is made by those before it.
        _send_round_the_healthy(producer, topics, 5_000)
    producer.flush(WAIT_S)
    _check_counts(topics, 5_000, floods)
