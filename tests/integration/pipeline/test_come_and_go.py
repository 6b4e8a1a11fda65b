"""Producers that come and go while others send: one that is closed gives everything back, and harms nobody."""

from __future__ import annotations

import gc
import logging
import os
from typing import Final

import pytest

from slabpress import Pipeline, Producer
from slabpress.pipeline import coordinator
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import (
    WATCHDOG_S,
    Sender,
    arena_of,
    begin,
    descriptors,
    held,
    holders,
    own_bytes,
    processes,
    read_numbers,
    served,
    stopped,
    until,
)
from tests.network.fake_broker import METADATA, FakeBroker
from tests.support.mock_cluster import MockCluster

CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
ALL: Final = ["job", "network process", "worker 0", "worker 1"]
# What a hundred producers, one after the other, may leave in a process's heap: 2.5 KiB each.
MEMORY_ALLOWANCE_BYTES: Final = 256 * 1024


def _arenas(producers: list[Producer]) -> set[int]:
    return {arena_of(producer) for producer in producers}


def test_a_closed_producers_arena_is_mapped_nowhere_when_close_returns(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    """Neither mapped nor held open, in no process, at that moment; and the others go on and lose nothing."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    steady = [pipeline.producer(compression_type=codec) for codec in ("lz4", "none", "zstd")]
    senders = [Sender(producer, "steady", f"steady{place}", window=20) for place, producer in enumerate(steady)]
    for number in range(20):
        producer = pipeline.producer(compression_type=CODECS[number % len(CODECS)], linger_ms=0)
        arena = arena_of(producer)
        producer.send("t", b"x", partition=number % 4).result(WATCHDOG_S)
        until(lambda arena=arena: holders(pipeline, arena) == ALL, "every child to have mapped it")  # type: ignore[misc]
        producer.close()
        assert holders(pipeline, arena) == []
        for sender in senders:
            sender.goes_on(5)
    for sender in senders:
        sender.end()
    assert served(pipeline, _arenas(steady))
    found = read_numbers(sink.bootstrap_servers, "steady")
    for sender in senders:
        expected = {number: list(range(number, sender.sent, 4)) for number in range(4)}
        assert found[sender.name] == expected


def test_close_waits_for_a_child_that_has_not_even_mapped_the_arena_yet(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It maps it as soon as it looks; that it has not yet does not mean that it never will."""
    monkeypatch.setattr(coordinator, "END_TIMEOUT_S", 0.2)
    pipeline = make_pipeline(sink.bootstrap_servers)
    with stopped(processes(pipeline)["worker 1"]):
        producer = pipeline.producer(linger_ms=0)
        producer.send("t", b"x").result(WATCHDOG_S)
        producer.close()
        assert "a closed producer's memory is still in use by worker 1" in caplog.text


def test_close_names_the_process_that_does_not_let_go(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stopped worker cannot unmap anything; it does so as soon as it goes on, and close() has not waited for ever."""
    monkeypatch.setattr(coordinator, "END_TIMEOUT_S", 0.2)
    pipeline = make_pipeline(sink.bootstrap_servers)
    other, producer = pipeline.producer(), pipeline.producer()
    arena = arena_of(producer)
    until(lambda: holders(pipeline, arena) == ALL, "every child to have mapped it")
    with stopped(processes(pipeline)["worker 1"]):
        producer.close()
        assert holders(pipeline, arena) == ["worker 1"]
        assert other.send("t", b"x").result(WATCHDOG_S).topic == "t"
    until(lambda: holders(pipeline, arena) == [], "the worker to let go")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "a closed producer's memory is still in use by worker 1"
    ]


@pytest.mark.parametrize("flooded", [False, True], ids=["quiet", "flooded"])
def test_a_hundred_producers_one_after_the_other_leave_every_process_as_it_was(
    sink: MockCluster, make_pipeline: MakePipeline, flooded: bool
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    pids = {"job": os.getpid()} | processes(pipeline)
    neighbour = pipeline.producer(compression_type="lz4")
    flood = Sender(neighbour, "flood", "flood", count=None if flooded else 10, filling=b"x" * 100)

    def one_life(number: int) -> None:
        with pipeline.producer(compression_type=CODECS[number % len(CODECS)], linger_ms=0) as producer:
            producer.send(f"many-{number % 7}", b"xy" * 1000, partition=number % 4).result(WATCHDOG_S)

    def look() -> dict[str, list[str]]:
        return {name: descriptors(pid) for name, pid in pids.items()}

    def memory() -> dict[str, int]:
        gc.collect()
        return {name: own_bytes(pid) for name, pid in pids.items()}

    for number in range(35):  # until every codec is loaded in every worker, and every topic and broker is known
        one_life(number)
    until(lambda: _serve_only(pipeline, neighbour), "the last arena to be let go")
    open_before = look()
    growth: dict[str, int] = dict.fromkeys(pids, MEMORY_ALLOWANCE_BYTES)
    for _ in range(3):  # a leak grows every time; a heap that settles, or this test's own threads, do not
        before = memory()
        for number in range(100):
            one_life(number)
        growth = {name: min(growth[name], now - before[name]) for name, now in memory().items()}
        if max(growth.values()) < MEMORY_ALLOWANCE_BYTES:
            break
    assert max(growth.values()) < MEMORY_ALLOWANCE_BYTES, growth
    until(lambda: look() == open_before, "every process to hold what it held before")
    assert _serve_only(pipeline, neighbour)
    assert processes(pipeline) == {name: pid for name, pid in pids.items() if name != "job"}
    flood.end()


def _serve_only(pipeline: Pipeline, producer: Producer) -> bool:
    """Whether the children map and hold this producer's arena and no other."""
    arenas = {arena_of(producer)}
    return served(pipeline, arenas) and all(held(pid) == arenas for pid in processes(pipeline).values())


def test_nobody_asks_for_a_closed_producers_topics_any_more(make_pipeline: MakePipeline) -> None:
    """Metadata is asked for again and again, of every topic that some producer sends to."""
    with FakeBroker({"kept": 1, "gone": 1}) as broker:
        pipeline = make_pipeline(broker.address, workers=1, metadata_max_age_ms=100)
        kept, gone = pipeline.producer(), pipeline.producer()
        begin(kept, "kept")
        begin(gone, "gone")

        def asked() -> list[list[str]]:
            bodies = [asked.body for asked in broker.asked if asked.api == METADATA]
            return [sorted(topic.name for topic in body.topics) for body in bodies]

        until(lambda: ["gone", "kept"] in asked(), "both to be asked for")
        gone.close()
        before = len(asked())
        until(lambda: len(asked()) >= before + 3, "more requests")
        later = asked()[before + 1 :]  # one may have been on its way
        assert later == [["kept"]] * len(later)
        begin(kept, "kept")
