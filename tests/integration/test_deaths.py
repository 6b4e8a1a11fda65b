"""Forks, stopped and killed children, callbacks that misbehave, tables that are full: the producer goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from slabpress import BootstrapError, DeliveryHandle, ForkedError, Producer, UnknownTopicError
from tests.integration.conftest import MakeProducer
from tests.support.kafka_install import wait_until
from tests.support.mock_cluster import MockCluster


@pytest.fixture(scope="module")
def sink() -> Iterator[MockCluster]:
    """Librdkafka's mock cluster, which needs no Java."""
    with MockCluster() as cluster:
        cluster.create_topic("t", 4)
        cluster.create_topic("wide", 50)
        yield cluster


def children(module: str) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if module in child.cmdline()]


def in_forked_child(work: object) -> int:
    """Run ``work`` in a forked child; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(work())  # type: ignore[operator] # any function that gives a number
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _flushed(producer: Producer) -> str:
    handle = producer.send("t", b"after")
    producer.flush(30)
    return handle.result(0).topic


def test_a_with_block_that_ends_in_a_forked_child_leaves_the_parents_producer_alone(
    sink: MockCluster, make_producer: MakeProducer
) -> None:
    producer = make_producer(sink.bootstrap_servers, linger_ms=60_000)
    handle = producer.send("t", b"open while the child ends")

    def leave_the_block() -> int:
        with producer:
            return 0

    assert in_forked_child(leave_the_block) == 0
    producer.flush(30)
    assert handle.result(0).topic == "t"
    assert _flushed(producer) == "t"


def test_a_handle_in_a_forked_child_does_not_wait_for_ever(sink: MockCluster, make_producer: MakeProducer) -> None:
    producer = make_producer(sink.bootstrap_servers, linger_ms=60_000)
    handle = producer.send("t", b"x")

    def ask() -> int:
        try:
            handle.result()
        except ForkedError:
            return 7
        return 0

    assert in_forked_child(ask) == 7


def test_a_stopped_worker_does_not_hold_up_the_others(sink: MockCluster, make_producer: MakeProducer) -> None:
    """Rings go to the first sleeper; stopped, it never gets up, and the coordinator's nudge wakes the rest."""
    producer = make_producer(sink.bootstrap_servers, workers=2, compression_type="lz4")
    producer.send("t", b"x").result(30)
    stopped = min(children("slabpress.workers"), key=lambda child: int(child.cmdline()[-1]))
    stopped.suspend()
    try:
        for _ in range(5):
            assert producer.send("t", b"x").result(30).topic == "t"
    finally:
        stopped.resume()


def test_children_ignore_the_signals_of_a_service_manager(sink: MockCluster, make_producer: MakeProducer) -> None:
    producer = make_producer(sink.bootstrap_servers, compression_type="lz4")
    producer.send("t", b"x").result(30)
    before = {child.pid for child in psutil.Process().children()}
    for child in [*children("slabpress.workers"), *children("slabpress.network")]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            child.send_signal(number)
    producer.send("t", b"y").result(30)
    assert {child.pid for child in psutil.Process().children()} == before


def test_a_callback_that_exits_ends_nothing_but_itself(
    sink: MockCluster, make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    producer = make_producer(sink.bootstrap_servers)

    def leave(_: DeliveryHandle) -> None:
        sys.exit(3)

    producer.send("t", b"x", on_delivery=leave)
    producer.flush(30)
    seen: list[DeliveryHandle] = []
    producer.send("t", b"y", on_delivery=seen.append)
    producer.flush(30)
    assert len(seen) == 1
    assert "tried to end its thread" in caplog.text


def test_keyless_records_stay_with_the_partitions_that_the_table_has_room_for(
    sink: MockCluster, make_producer: MakeProducer
) -> None:
    producer = make_producer(sink.bootstrap_servers, max_topic_partitions=8, linger_ms=0)
    for number in range(300):
        producer.send("wide", b"%d" % number)
        if number % 10 == 0:
            producer.flush(30)
    producer.send_many("wide", [b"x"] * 500)
    producer.flush(30)
    assert producer.stats().records_delivered == 800


def test_a_producer_that_may_not_wait_learns_of_a_topic_all_the_same(
    sink: MockCluster, make_producer: MakeProducer
) -> None:
    producer = make_producer(sink.bootstrap_servers, max_block_ms=0)

    def sent() -> bool:
        try:
            producer.send("t", b"x")
        except (UnknownTopicError, BootstrapError):  # it may not even wait for a connection
            return False
        return True

    wait_until(sent, "the topic to be known", 30)


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_results_of_a_partition_are_reported_in_its_order(sink: MockCluster, codec: str) -> None:
    offsets: list[int | None] = []
    with Producer(
        sink.bootstrap_servers,
        workers=2,
        compression_type=codec,
        batch_size=2000,
        on_delivery=lambda handle: offsets.append(handle.result(0).offset),
    ) as producer:
        for _ in range(3000):
            producer.send("t", b"x" * 100, partition=1)
        producer.flush(60)
    assert offsets == sorted(offset for offset in offsets if offset is not None)
    assert len(offsets) == 3000


def test_a_send_that_waits_long_for_its_topic_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with (
        Producer("127.0.0.1:1", workers=1, max_block_ms=2500) as producer,
        pytest.raises(BootstrapError, match="no bootstrap server answered"),
    ):
        producer.send("t", b"x")
    assert time.monotonic() - started >= 2.5
    assert "waiting for topic 't': 127.0.0.1:1: connection refused" in caplog.text
