"""The network process dies with requests in flight: the next one sends the same batches under the same sequences."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from slabpress import Producer
from slabpress.network.messages import INIT_PRODUCER_ID
from slabpress.network.sequences import Sequences
from tests.integration.conftest import MakeProducer
from tests.integration.deaths.records import Counts, check, count, read_and_count
from tests.integration.deaths.sending import NETWORK_PROCESS, LogEnd, Stream, kill, works
from tests.integration.pipeline.looks import until
from tests.support.kafka import KafkaCluster, read_back
from tests.support.mock_cluster import MockCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

KILLS: Final = 3
IN_FLIGHT: Final = 5
# Answers are this late, so that what was appended is not yet acknowledged.
LATE_MS: Final = 250.0
# Each record is a batch of its own.
ONE_BY_ONE: Final[dict[str, Any]] = {"linger_ms": 0, "batch_size": 1, "workers": 1}


@pytest.fixture(autouse=True)
def no_pause_after_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slabpress.pipeline.supervisor._BACKOFF_S", 0.0)


@contextmanager
def late_answers(kafka: KafkaCluster) -> Iterator[None]:
    kafka.proxies[1].down.delay_ms = LATE_MS
    try:
        yield
    finally:
        kafka.proxies[1].down.delay_ms = 0.0


def kill_with_appended_batches_in_flight(producer: Producer, stream: Stream, log_end: Callable[[], int]) -> None:
    """Kill the network process when it has five batches on the wire, of which the broker has appended some."""
    until(lambda: works(producer, NETWORK_PROCESS), "the next network process to have taken over")

    def may_die() -> bool:
        # One goes alone until it is acknowledged; then, as long as there are enough, five are in flight all the time.
        if producer.stats().records_pending < 2 * IN_FLIGHT:
            stream.send(IN_FLIGHT)
        # Looked at in this order: what is acknowledged in between makes it less than it was.
        appended = log_end()
        stats = producer.stats()
        return stats.batches["in_flight"] >= IN_FLIGHT and appended > stats.records_delivered

    until(may_die, "five batches in flight, one of them appended")
    kill(producer, NETWORK_PROCESS, signal.SIGKILL)


def test_kill_9_of_the_network_process_with_five_appended_batches_in_flight(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    """Again and again: the log has each record once, in order, all of one producer id, epoch and run of sequences."""
    kafka = kafka_behind_proxy
    kafka.create_topic(topic)
    producer = make_producer(kafka.proxied_bootstrap_servers, **ONE_BY_ONE)
    stream = Stream(producer, topic)
    stream.send(1)
    producer.flush()
    sequences = Sequences(producer._session.arena)
    producer_id = sequences.producer_id
    with late_answers(kafka), LogEnd(kafka.bootstrap_servers, topic) as log_end:
        for _ in range(KILLS):
            kill_with_appended_batches_in_flight(producer, stream, log_end)
        producer.flush(60)
    assert check(kafka, topic, stream.accepted) == stream.sent
    assert sequences.producer_id == producer_id
    assert producer.stats().network["epochs_begun"] == 0
    sent_as = [(b.producer_id, b.producer_epoch, b.base_sequence) for b in kafka.dump_log(topic, 0)]
    assert sent_as == [(producer_id, 0, number) for number in range(stream.sent)]


def test_kill_9_of_the_network_process_without_idempotence_doubles_what_was_appended(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    """What the sequences are for; none is lost, though."""
    kafka = kafka_behind_proxy
    kafka.create_topic(topic)
    producer = make_producer(kafka.proxied_bootstrap_servers, enable_idempotence=False, **ONE_BY_ONE)
    stream = Stream(producer, topic)
    stream.send(1)
    producer.flush()
    with late_answers(kafka), LogEnd(kafka.bootstrap_servers, topic) as log_end:
        stream.send(4)
        until(lambda: log_end() > producer.stats().records_delivered, "a batch appended and not acknowledged")
        kill(producer, NETWORK_PROCESS, signal.SIGKILL)
        producer.flush(60)
    found = read_and_count(kafka, topic, stream.accepted)
    assert (found.records, found.lost) == (stream.sent, 0)
    assert found.doubled > 0


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_kill_9_of_the_network_process_under_load(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer, codec: str
) -> None:
    """Whatever it was doing: it is killed wherever it happens to be."""
    kafka = kafka_behind_proxy
    kafka.create_topic(topic, 3)
    producer = make_producer(kafka.proxied_bootstrap_servers, compression_type=codec, buffer_memory="2MiB")
    stream = Stream(producer, topic, 3, filling=b"x" * 300)
    with stream.running(pause_s=0.0002):
        stream.goes_on()
        for _ in range(KILLS):
            kill(producer, NETWORK_PROCESS, signal.SIGKILL)
            stream.goes_on(500)
    assert check(kafka, topic, stream.accepted) == stream.sent


def test_kill_9_of_the_network_process_before_its_producer_id_has_come(topic: str, make_producer: MakeProducer) -> None:
    """The answer is late, so batches wait for the id when their sender dies; the next one asks again."""
    with MockCluster() as cluster:
        cluster.create_topic(topic)
        cluster.broker_push_request_error_rtts(1, INIT_PRODUCER_ID, [(0, 60_000)])
        producer = make_producer(cluster.bootstrap_servers, **ONE_BY_ONE)
        stream = Stream(producer, topic)
        stream.send(10)
        until(lambda: producer.stats().batches["ready"] > 0, "a batch that waits for the id")
        assert Sequences(producer._session.arena).producer_id is None
        kill(producer, NETWORK_PROCESS, signal.SIGKILL)
        producer.flush(60)
        assert Sequences(producer._session.arena).producer_id is not None
        read = read_back(cluster.bootstrap_servers, topic, timeout_s=60)
        assert count(read, stream.accepted) == Counts(10, lost=0, doubled=0, reordered=0)
