"""Many producers on one set of processes: all of it arrives, in order, and nobody has processes of his own."""

from __future__ import annotations

import random
import threading
from typing import Any

import psutil
import pytest

from slabpress import DeliveryHandle
from slabpress.footprints import CODEC_LINE
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import WATCHDOG_S, Sender, processes, read_numbers, until
from tests.integration.pipeline.withheld import WithheldBroker
from tests.support.mock_cluster import MockCluster
from tests.support.reference_batch import decode_batch

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def _children() -> list[str]:
    """The modules that this process's children run, those of the mock cluster left out."""
    lines = [child.cmdline() for child in psutil.Process().children()]
    return sorted(word for line in lines for word in line if word.startswith("slabpress."))


def test_twenty_producers_share_three_processes_and_keep_their_order(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    """Each sends more than its arena holds, from a thread of its own, to a topic that it shares with others."""
    topics = [f"shared-{number}" for number in range(4)]
    for topic in topics:
        sink.create_topic(topic, 4)
    pipeline = make_pipeline(sink.bootstrap_servers, workers=2)
    producers = [pipeline.producer(compression_type=CODECS[number % len(CODECS)]) for number in range(20)]
    senders = [
        Sender(producer, topics[number % len(topics)], f"p{number}", count=1200, filling=bytes(range(256)) * 4)
        for number, producer in enumerate(producers)
    ]
    for sender in senders:
        sender.wait()
    assert _children() == ["slabpress.network", "slabpress.workers", "slabpress.workers"]
    assert sorted(processes(pipeline)) == ["network process", "worker 0", "worker 1"]
    pipeline.close(WATCHDOG_S)
    assert _children() == []
    for place, topic in enumerate(topics):
        found = read_numbers(sink.bootstrap_servers, topic)
        assert set(found) == {sender.name for sender in senders[place :: len(topics)]}
        for name, partitions in found.items():
            assert {number: list(range(number, 1200, 4)) for number in range(4)} == partitions, name


def test_every_producers_batches_have_its_own_acks_and_its_own_codec(make_pipeline: MakePipeline) -> None:
    """A Produce request has one acks for all that is in it; all of these are ready when the next one is made."""
    acks_of = {0: 0, 1: 1, 2: -1, 3: 0, 4: -1}
    with WithheldBroker({"t": 6}) as broker:
        pipeline = make_pipeline(broker.address, workers=1, max_in_flight_requests_per_connection=1)
        front, *producers = (
            pipeline.producer(acks=acks, compression_type=codec, linger_ms=0)
            for acks, codec in ((1, "none"), *zip(acks_of.values(), CODECS, strict=True))
        )
        broker.allow(1 + len(producers))
        for producer in (front, *producers):
            producer.send("t", b"x", partition=5).result(WATCHDOG_S)
        before = len(broker.produced())
        handles = [front.send("t", b"in front", partition=5)]
        until(lambda: len(broker.produced()) > before, "the request that holds the connection")
        handles += [producer.send("t", b"x" * 5000, partition=number) for number, producer in enumerate(producers)]
        until(lambda: all(producer.stats().batches["ready"] == 1 for producer in producers), "all to be ready")
        broker.allow(1 + len(producers))
        assert [handle.exception(WATCHDOG_S) for handle in handles] == [None] * 6
        # Of acks=0 nobody hears when it has come: what comes after it on the same connection tells.
        broker.allow()
        front.send("t", b"last", partition=5).result(WATCHDOG_S)
        asked = [request.body.acks for request in broker.produced()]
        for acks, partitions in zip(asked[before + 1 :], broker.partitions()[before + 1 :], strict=True):
            assert {acks_of.get(partition, 1) for partition in partitions} == {acks}
        batches = {partition: decode_batch(batch) for _, partition, batch in broker.records() if partition < 5}
    assert [CODECS[batches[number][0].codec_id] for number in range(5)] == list(CODECS)
    assert all(records[0].value == b"x" * 5000 for _, records in batches.values())


def test_callbacks_of_two_producers_run_on_two_threads(sink: MockCluster, make_pipeline: MakePipeline) -> None:
    """One that does not come back holds up its own producer alone."""
    pipeline = make_pipeline(sink.bootstrap_servers, workers=1)
    entered, gate = threading.Event(), threading.Event()
    threads: dict[str, threading.Thread] = {}

    def slow(_: DeliveryHandle) -> None:
        threads["slow"] = threading.current_thread()
        entered.set()
        assert gate.wait(WATCHDOG_S)

    quick_calls: list[DeliveryHandle] = []

    def quick(handle: DeliveryHandle) -> None:
        threads["quick"] = threading.current_thread()
        quick_calls.append(handle)

    slow_producer = pipeline.producer(on_delivery=slow)
    quick_producer = pipeline.producer(on_delivery=quick)
    try:
        slow_handles = [slow_producer.send("t", b"x", partition=number % 4) for number in range(8)]
        assert entered.wait(WATCHDOG_S)
        for number in range(100):
            quick_producer.send("t", b"x", partition=number % 4)
        quick_producer.flush(WATCHDOG_S)
        assert len(quick_calls) == 100
        assert not gate.is_set()
    finally:
        gate.set()
    slow_producer.flush(WATCHDOG_S)
    assert all(handle.exception(0) is None for handle in slow_handles)
    assert threads["slow"] is not threads["quick"]
    assert {thread.name for thread in threads.values()} == {"slabpress-callbacks"}


def test_memory_counts_every_child_once_and_none_takes_more_than_planned(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers, workers=2)
    producers = [
        pipeline.producer(buffer_memory="2MiB", compression_type=CODECS[number % len(CODECS)]) for number in range(10)
    ]
    senders = [
        Sender(producer, "memory", f"p{number}", count=2000, filling=b"x" * 500)
        for number, producer in enumerate(producers)
    ]
    for sender in senders:
        sender.wait()
    figures = {figure.name: figure for figure in pipeline.memory()}
    assert len(figures) == len(pipeline.memory())
    children = {"network process", "worker 0", "worker 1"}
    assert set(figures) == {"arena", "control block", *children, "coordinator", "kernel"}
    assert {name: figure.planned_bytes for name, figure in figures.items()} == pipeline.plan.by_part()
    assert sum(figure.planned_bytes for figure in figures.values()) == pipeline.plan.total_bytes
    assert figures["arena"] == ("arena", 20 << 20, 20 << 20)
    assert figures["coordinator"].measured_bytes is figures["kernel"].measured_bytes is None
    for name in ("control block", *children):
        measured = figures[name].measured_bytes
        assert measured is not None
        assert 0 < measured <= figures[name].planned_bytes
    assert [figure.name for figure in producers[0].stats().memory] == list(figures)


def test_equal_codecs_share_a_workspace_and_the_last_producer_gives_it_back(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers, workers=1)

    def workspaces() -> list[int]:
        return [line.total_bytes for line in pipeline.plan.lines if line.name == CODEC_LINE]

    first, second, other = (pipeline.producer(compression_type=codec) for codec in ("zstd", "zstd", "lz4"))
    zstd, lz4 = (
        next(line.bytes_each for line in producer.plan.lines if line.name == CODEC_LINE) for producer in (first, other)
    )
    assert zstd > lz4 > 0
    for closing, left in ((first, [zstd, lz4]), (second, [zstd, lz4]), (other, [lz4])):
        assert workspaces() == left
        closing.close()
    assert workspaces() == []


def test_a_worker_takes_no_more_than_planned_whatever_codecs_it_had(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    """Producers with ever larger workspaces, one after the other; after them it is as small as before."""
    pipeline = make_pipeline(sink.bootstrap_servers, workers=1)
    value = random.Random(1).randbytes(300_000) + b"abc" * 100_000

    def is_within_plan() -> bool:
        worker = next(figure for figure in pipeline.memory() if figure.name == "worker 0")
        assert worker.measured_bytes is not None
        return worker.measured_bytes <= worker.planned_bytes

    for level in range(1, 20):
        settings: dict[str, Any] = {"compression_type": "zstd", "compression_level": level}
        with pipeline.producer(buffer_memory="8MiB", batch_size="1MiB", **settings) as producer:
            producer.send("t", value).result(WATCHDOG_S)
            assert is_within_plan(), f"with level {level}"
    until(is_within_plan, "the last workspace to be given back")


@pytest.mark.parametrize("codec", CODECS)
def test_two_producers_of_one_codec_do_not_mix_their_bytes(
    sink: MockCluster, make_pipeline: MakePipeline, codec: str
) -> None:
    """They share one codec and its workspace in each worker, from two threads that send at the same time."""
    pipeline = make_pipeline(sink.bootstrap_servers, workers=1)
    topic = f"codec-{codec}"
    senders = [
        Sender(
            pipeline.producer(compression_type=codec),
            topic, name, count=500, filling=name.encode() * 400,
        )
        for name in ("ab", "cd")
    ]  # fmt: skip
    for sender in senders:
        sender.wait()
    found = read_numbers(sink.bootstrap_servers, topic)
    assert set(found) == {"ab", "cd"}
    for partitions in found.values():
        assert partitions == {number: list(range(number, 500, 4)) for number in range(4)}
