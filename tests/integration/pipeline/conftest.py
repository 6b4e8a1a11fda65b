"""Fixtures of the pipeline's tests: a mock cluster, and pipelines that are closed in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slabpress import Pipeline, Producer, SlabpressError
from tests.support.mock_cluster import MockCluster

MakePipeline = Callable[..., Pipeline]


class _Keeper(Pipeline):
    """A pipeline that keeps its producers until they are closed: a test's variables end before its fixtures do."""

    kept: tuple[Producer, ...] = ()

    def producer(self, **settings: Any) -> Producer:
        made = super().producer(**({"buffer_memory": "1MiB"} | settings))
        self.kept = (*(producer for producer in self.kept if not producer._closed), made)
        return made


@pytest.fixture(scope="package")
def sink() -> Iterator[MockCluster]:
    """One mock broker with the topic t of 4 partitions. A test that stops it sets it going again."""
    with MockCluster() as cluster:
        cluster.create_topic("t", 4)
        yield cluster


@pytest.fixture(scope="package")
def pair() -> Iterator[MockCluster]:
    """Two brokers; of the topic "first" broker 1 leads the only partition, of "second" broker 2."""
    with MockCluster(2) as cluster:
        for broker, topic in ((1, "first"), (2, "second")):
            cluster.create_topic(topic)
            cluster.set_leader(topic, 0, broker)
        yield cluster


@pytest.fixture
def make_pipeline() -> Iterator[MakePipeline]:
    """A function that makes pipelines; those that a test leaves open are closed after it, without waiting.

    Their producers have arenas of 1 MiB unless they ask for more.
    """
    made: list[Pipeline] = []

    def make(bootstrap_servers: str, **settings: Any) -> Pipeline:
        pipeline = _Keeper(bootstrap_servers, **({"workers": 2} | settings))
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        try:
            pipeline.close(0)
        except SlabpressError:
            continue  # the test has looked at what it wanted to
