"""No growth anywhere: what goes on and on, well or badly, leaves every process as it was.

Each load goes round and round in a job; its processes are looked at after every round, when nothing is under way (in
the test of slow callbacks: when everything is held up). After a warm-up, the median of the last looks may not be more
than that of the first by over 512 KiB, in any process. The counts are such that 200 bytes a record or 1 KiB a batch
would be at least twice that; of what is rarer, a topic's life shows from 0.6 KiB on, a lost connection from 6 KiB.

    SLABPRESS_LONG=1 python -m pytest tests/integration/memory/test_no_growth.py

goes ten times as many rounds, in about 10 minutes, with the same allowance: it shows a tenth of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.integration.memory.compare import Course, check_growth
from tests.integration.memory.watch import RunningJob, State
from tests.network.fake_broker import FakeBroker, PartitionAnswer
from tests.support.mock_cluster import MockCluster

LONG: Final = bool(os.environ.get("SLABPRESS_LONG"))
TIMES: Final = 10 if LONG else 1
PRODUCE: Final = 0
BROKER: Final = 1
# Kafka's error codes.
UNKNOWN_TOPIC: Final = 3
TOO_LARGE: Final = 10
NOT_AUTHORIZED: Final = 29

pytestmark = pytest.mark.timeout(1800 if LONG else 120)


def go_round(
    load: str, rounds: int, warm_up: int, between: Callable[[State], object] = lambda _: None, **order: Any
) -> tuple[Course, State]:
    """Run a load for so many rounds after its warm-up; what was taken, and the last that the job told.

    Args:
        load: which, see rounds.py.
        rounds: how many, ten times as many in a long run.
        warm_up: how many before them.
        between: called wherever the job stops.
        order: what the load asks for.
    """
    with RunningJob(load, **order) as job:
        job.started()
        course = Course(job, warm_up)
        while True:
            state = job.reads("round", "create", "delete", "break")
            between(state)
            if state["at"] == "round":
                course.look()
                if course.rounds == warm_up + rounds * TIMES:
                    break
            job.go()
        job.finish()
    return course, state


def go_round_refused(
    code: int, sink: MockCluster, topic: str, partitions: int, warm_up: int, **order: Any
) -> tuple[Course, State]:
    """Run twenty rounds of records for a broker that answers every Produce request with this code."""
    sink.create_topic(topic, partitions)
    servers = sink.bootstrap_servers
    try:
        return go_round(
            "records",
            20,
            warm_up,
            lambda _: sink.push_request_errors(PRODUCE, [code] * 2000),
            servers=servers,
            topic=topic,
            partitions=partitions,
            **order,
        )
    finally:
        sink.clear_request_errors(PRODUCE)


def test_a_million_handles_that_nobody_keeps(sink: MockCluster, topic: str) -> None:
    sink.create_topic(topic, 4)
    settings = {"buffer_memory": "16MiB", "workers": 2, "compression_type": "lz4", "batch_size": "16KiB"}
    course, last = go_round(
        "records", 20, 4, servers=sink.bootstrap_servers, topic=topic, records=50_000, partitions=4, settings=settings
    )
    assert last["accepted"] == last["delivered"] >= 1_000_000
    check_growth(course)


def test_a_leak_of_200_bytes_a_record_is_seen(sink: MockCluster, topic: str) -> None:
    sink.create_topic(topic, 4)
    course, _ = go_round(
        "records", 8, 2, servers=sink.bootstrap_servers, topic=topic, records=2000, partitions=4, kept_bytes=200
    )
    with pytest.raises(AssertionError, match="coordinator"):
        check_growth(course)


def test_a_million_records_that_fail(sink: MockCluster, topic: str) -> None:
    """Whole batches that the broker refuses for good, and nobody asks why."""
    settings = {"buffer_memory": "16MiB", "workers": 2, "batch_size": "16KiB"}
    course, last = go_round_refused(NOT_AUTHORIZED, sink, topic, 4, 4, records=50_000, settings=settings)
    assert last["accepted"] == last["failed"] >= 1_000_000
    check_growth(course)


def test_20_000_records_that_are_too_large_even_alone(sink: MockCluster, topic: str) -> None:
    """Every batch is split, and every piece of it again, down to single records, each of which fails."""
    settings = {"buffer_memory": "4MiB", "workers": 2, "compression_type": "lz4", "batch_size": "2KiB"}
    course, last = go_round_refused(TOO_LARGE, sink, topic, 32, 8, records=1024, settings=settings)
    assert last["accepted"] == last["failed"] >= 20_000
    assert last["network"]["splits"] > 2000
    check_growth(course)


def test_callbacks_that_do_not_return(sink: MockCluster, topic: str) -> None:
    """All descriptors wait for one callback: send() is refused a hundred times a round, and nothing queues."""
    sink.create_topic(topic, 4)
    course, last = go_round(
        "slow_callbacks",
        32,
        12,
        servers=sink.bootstrap_servers,
        topic=topic,
        refusals=100,
        settings={"buffer_memory": "1MiB", "workers": 2},
    )
    assert last["batches"]["free"] == 0
    assert last["batches"]["reporting"] > 0
    assert last["accepted"] >= 40 * 226
    check_growth(course)


def test_topics_that_are_asked_for_created_deleted_and_created_again(sink: MockCluster) -> None:
    """A thousand lives of a hundred topics, and as many names again that there never is a topic for."""

    def answer(topic: str, _: int) -> PartitionAnswer:
        return PartitionAnswer(error=0 if topic in broker.topics else UNKNOWN_TOPIC)

    def between(state: State) -> None:
        if state["at"] == "create":
            broker.topics.update({f"topic-{number}": 2 for number in range(100)})
        elif state["at"] == "delete":
            broker.topics.clear()

    with FakeBroker({}, versions={PRODUCE: (0, 12)}) as broker:  # from version 13 on it would have to keep old ids
        broker.on_produce = answer
        course, last = go_round(
            "topics",
            10,
            4,
            between,
            servers=broker.address,
            topics=100,
            never=100,
            settings={
                "buffer_memory": "2MiB",
                "workers": 1,
                "max_topic_partitions": 512,
                "request_timeout_ms": 300,
                "delivery_timeout_ms": 400,
                "retry_backoff_ms": 50,
                "retry_backoff_max_ms": 100,
            },
        )
    assert last["delivered"] >= 1400
    assert last["failed"] >= 1000
    check_growth(course)


def test_brokers_that_go_and_come_back(sink: MockCluster, topic: str) -> None:
    """Connections break while records are on their way, again and again."""
    sink.create_topic(topic, 4)

    def between(state: State) -> None:
        if state["at"] == "break":
            sink.set_down(BROKER)
            sink.set_up(BROKER)

    course, last = go_round(
        "restarts",
        80,
        20,
        between,
        servers=sink.bootstrap_servers,
        topic=topic,
        settings={
            "buffer_memory": "1MiB",
            "workers": 2,
            "reconnect_backoff_ms": 1,
            "reconnect_backoff_max_ms": 5,
            "retry_backoff_ms": 1,
        },
    )
    assert last["accepted"] == last["delivered"] >= 80 * 40
    assert last["network"]["reconnects"] >= 80
    check_growth(course)


def test_metadata_of_10_000_partitions_again_and_again(sink: MockCluster, topic: str) -> None:
    sink.create_topic(topic, 10_000)
    course, last = go_round(
        "refreshes",
        10,
        3,
        servers=sink.bootstrap_servers,
        topic=topic,
        refreshes=3,
        partitions=10_000,
        settings={"buffer_memory": "16MiB", "workers": 1},
    )
    assert last["network"]["metadata_requests"] >= 30
    assert last["accepted"] == last["delivered"] > 100
    check_growth(course)
