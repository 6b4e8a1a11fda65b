"""A plan that comes true where nothing goes well: nobody acknowledges, batches are too large, metadata is large.

As in test_plan_comes_true.py; every test makes sure that its load has come to where it was to come.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Final

import pytest

from slabpress.cpus import memory_available_bytes
from tests.integration.memory.compare import Held, check, hold, settings_of
from tests.integration.memory.watch import Sampler, State
from tests.support.kafka import KafkaCluster
from tests.support.mock_cluster import MockCluster

LOOKS: Final = 5
BROKER: Final = 1


def hold_stalled(stop: Callable[[], object], go_on: Callable[[], object], **order: Any) -> Held:
    """Run a load against a broker that is stopped where the job says so, until the job is full and was looked at."""

    def between(state: State, sampler: Sampler) -> None:
        if state["at"] == "stop":
            stop()
        else:
            assert state["slabs"]["free"] == 0
            assert state["batches"]["in_flight"] > 0
            sampler.looks(LOOKS)
            go_on()

    try:
        return hold("stalled", between, **order)
    finally:
        go_on()


def hold_stopped(sink: MockCluster, topic: str, partitions: int, **settings: Any) -> Held:
    """As ``hold_stalled``, with one record a batch, and a broker whose process is stopped."""
    sink.create_topic(topic, partitions)
    return hold_stalled(
        lambda: os.kill(sink.pid, signal.SIGSTOP),
        lambda: os.kill(sink.pid, signal.SIGCONT),
        servers=sink.bootstrap_servers,
        topic=topic,
        settings=settings_of("none", batch_size=1, linger_ms=0, **settings),
        values="lines",
        partitions=partitions,
    )


@pytest.mark.parametrize(
    ("topics", "used", "settings"),
    [
        (1, 128, {"buffer_memory": "4MiB", "max_topic_partitions": 128}),
        (3, 10_000, {"buffer_memory": "64MiB", "max_topic_partitions": 30_000}),
        (12, 2, {"buffer_memory": "1MiB", "max_topic_partitions": 64}),
    ],
    ids=["few of 10,000 used", "all of 30,000 used", "12 topics"],
)
def test_metadata_of_topics_of_10_000_partitions(
    sink: MockCluster, topic: str, topics: int, used: int, settings: State
) -> None:
    """Twelve of them make a response of 4 MiB, the largest that is read."""
    names = [f"{topic[-20:]}-{number}" for number in range(topics)]
    for name in names:
        sink.create_topic(name, 10_000)
    held = hold(
        "wide_topics",
        servers=sink.bootstrap_servers,
        topics=names,
        settings=settings_of("lz4", **settings),
        used=used,
        refreshes=5 + topics,
    )
    check(held)
    assert held.facts["used"] == topics * used


@pytest.mark.kafka
def test_acknowledgements_that_do_not_come(proxied_kafka: KafkaCluster, topic: str) -> None:
    """The arena is full, the sockets are full, and the program goes on trying."""
    proxied_kafka.create_topic(topic, 16)
    proxy = proxied_kafka.proxies[BROKER]
    held = hold_stalled(
        proxy.pause,
        proxy.resume,
        servers=proxied_kafka.proxied_bootstrap_servers,
        topic=topic,
        settings=settings_of("lz4", buffer_memory="32MiB"),
        values="noise",
        partitions=16,
    )
    check(held)


def test_one_record_a_batch_for_5000_topic_partitions(sink: MockCluster, topic: str) -> None:
    """The most batches that an arena can hold; once the broker goes on, thousands of them go in one request."""
    small = {"buffer_memory": "16MiB", "slab_size": 1024, "max_topic_partitions": 5000, "max_request_size": "16MiB"}
    check(hold_stopped(sink, topic, 5000, **small))


def test_a_gigabyte_full_of_batches_of_one_record(sink: MockCluster, topic: str) -> None:
    available = memory_available_bytes()
    if available is None or available < 3 << 30:
        pytest.skip(f"needs 3 GiB, {available} bytes are available")
    held = hold_stopped(sink, topic, 200, buffer_memory="1GiB")
    check(held)
    assert held.facts["accepted"] > 16_000


@pytest.mark.kafka
def test_every_batch_split(proxied_kafka: KafkaCluster, topic: str) -> None:
    """Every codec's batches are ten times what the topics take: workers decompress, cut and compress."""
    names = [f"{topic}-{number}" for number in range(3)]
    for name in names:
        proxied_kafka.create_topic(name, 2, config={"max.message.bytes": "20000"})
    held = hold(
        "split",
        servers=proxied_kafka.bootstrap_servers,
        topics=names,
        settings={"buffer_memory": "8MiB"},
        codecs=["none", "gzip", "snappy", "lz4", "zstd"],
    )
    check(held)
    assert min(held.facts["splits"]) > 10, held.facts
