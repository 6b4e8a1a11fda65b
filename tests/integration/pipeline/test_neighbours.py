"""A producer that is stuck, or that floods, takes nothing from its neighbours but their turns."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from slabpress import DeliveryHandle, Pipeline, Producer
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import WATCHDOG_S, begin, fill, processes, stopped, until
from tests.integration.pipeline.withheld import WithheldBroker
from tests.support.mock_cluster import MockCluster

ROUND_TRIPS: Final = 200
WIDE: Final = 200
FLOOD: Final = 2 * WIDE
SMALL: Final = 10


def _go_and_return(producer: Producer, topic: str, trips: int) -> None:
    """Send one record after the other, each after the last was acknowledged."""
    for number in range(trips):
        assert producer.send(topic, b"%d" % number, partition=0).result(WATCHDOG_S).topic == topic


def test_a_producer_whose_leader_is_down_and_whose_arena_is_full_stops_nobody(
    pair: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(pair.bootstrap_servers, reconnect_backoff_max_ms=50)
    stuck = pipeline.producer(max_block_ms=0, compression_type="lz4")
    other = pipeline.producer(compression_type="lz4")
    begin(stuck, "first")
    pair.set_down(1)
    try:
        count = fill(stuck, "first", bytes(range(256)) * 4)
        assert count > 300
        _go_and_return(other, "second", ROUND_TRIPS)
        figures = stuck.stats()
        assert figures.records_pending == count
        # Nor does it stop one that comes now.
        with pipeline.producer() as late:
            _go_and_return(late, "second", 10)
    finally:
        pair.set_up(1)
    stuck.flush(WATCHDOG_S)
    assert stuck.stats().records_delivered == count + 1


def test_a_producer_whose_callback_does_not_return_and_whose_arena_is_full_stops_nobody(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    gate = threading.Event()
    stuck = pipeline.producer(max_block_ms=0, buffer_memory="256KiB", on_delivery=lambda _: gate.wait(WATCHDOG_S))
    calls: list[DeliveryHandle] = []
    other = pipeline.producer(on_delivery=calls.append)
    begin(stuck, "t")
    try:
        # Its batches are delivered, but their descriptors are taken until their callbacks have run.
        until(lambda: fill(stuck, "t", b"x", partitions=4) == stuck.stats().batches["free"] == 0, "it to be full")
        _go_and_return(other, "t", ROUND_TRIPS)
        assert not gate.is_set()
    finally:
        gate.set()
    other.flush(WATCHDOG_S)
    assert len(calls) == ROUND_TRIPS
    stuck.flush(WATCHDOG_S)


def _flood(pipeline: Pipeline, broker: WithheldBroker, codec: str) -> Producer:
    """A producer with two full batches for each partition of a wide topic, all sealed."""
    flooder = pipeline.producer(
        buffer_memory="16MiB", batch_size="16KiB", max_request_size="64KiB", linger_ms=0, compression_type=codec
    )
    broker.allow()
    begin(flooder, "wide")
    return flooder


def _seal(flooder: Producer) -> None:
    value = random.Random(1).randbytes(1024)
    for _ in range(2):
        for partition in range(WIDE):
            flooder.send_many("wide", [value] * 15, partition=partition)
    until(lambda: flooder.stats().batches["open"] == 0, "all of the flood to be sealed")
    assert flooder.stats().coordinator["batches_sealed"] >= FLOOD


def _before_the_last_small(broker: WithheldBroker) -> int:
    """How many batches of the flood have come before the last one of the other producer."""
    topics = [batch.topic for request in broker.requests() for batch in request]
    assert topics.count("small") == 1 + SMALL
    last = len(topics) - topics[::-1].index("small")
    return topics[:last].count("wide")


@pytest.fixture
def broker() -> Iterator[WithheldBroker]:
    """A broker that answers when it is allowed to, and remembers in what order everything came."""
    with WithheldBroker({"wide": WIDE, "small": SMALL}) as broker:
        yield broker


def test_a_flood_leaves_every_second_turn_on_the_wire_to_another(
    broker: WithheldBroker, make_pipeline: MakePipeline
) -> None:
    """400 batches of 200 partitions, and 10 batches of a single one, are ready at once; a request holds four."""
    pipeline = make_pipeline(broker.address, workers=1, max_in_flight_requests_per_connection=1)
    flooder = _flood(pipeline, broker, "none")
    small = pipeline.producer(max_request_size="64KiB", batch_size="1KiB", slab_size=1024, linger_ms=0)
    broker.allow()
    begin(small, "small")
    _seal(flooder)
    until(lambda: flooder.stats().batches["in_flight"] > 0, "the flood to have the connection")
    for _ in range(SMALL):
        small.send("small", b"x" * 900, partition=0)
    until(lambda: flooder.stats().batches["ready"] > FLOOD - 10, "the flood to be ready")
    # The last stays open: it lingers while others of its partition are under way.
    until(lambda: small.stats().batches["ready"] == SMALL - 1, "all that the other sends to be ready")
    broker.allow(FLOOD + SMALL)
    for producer in (small, flooder):
        producer.flush(WATCHDOG_S)
    assert _before_the_last_small(broker) < FLOOD / 4


def test_a_flood_leaves_every_second_turn_at_the_worker_to_another(
    broker: WithheldBroker, make_pipeline: MakePipeline
) -> None:
    """400 batches, and 10 of another producer, wait for the only worker; the broker takes whatever is ready."""
    pipeline = make_pipeline(broker.address, workers=1)
    broker.allow(FLOOD + SMALL)
    flooder = _flood(pipeline, broker, "gzip")
    small = pipeline.producer(linger_ms=0, compression_type="gzip")
    begin(small, "small")
    with stopped(processes(pipeline)["worker 0"]):
        _seal(flooder)
        for partition in range(SMALL):
            small.send("small", b"x" * 900, partition=partition)
        until(lambda: small.stats().batches["sealed"] == SMALL, "all that the other sends to be sealed")
    for producer in (small, flooder):
        producer.flush(WATCHDOG_S)
    assert _before_the_last_small(broker) < FLOOD / 4
