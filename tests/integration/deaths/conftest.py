"""Fixtures of the deaths: one broker behind a proxy, that may be paused as well, and jobs that leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.deaths.jobs import Job
from tests.support.brokers import require_kafka
from tests.support.kafka import KafkaCluster

MakeJob = Callable[..., Job]


@pytest.fixture(scope="package")
def kafka_behind_proxy() -> Iterator[KafkaCluster]:
    """One broker; a test that pauses it, or harms the proxy's connections, mends that itself."""
    require_kafka()
    with KafkaCluster(1, proxied=True) as cluster:
        yield cluster


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    """A function that starts jobs; whatever is left of them after a test is killed."""
    made: list[Job] = []

    def make(bootstrap_servers: str, topic: str, **spec: Any) -> Job:
        job = Job(tmp_path / f"job-{len(made)}", bootstrap_servers, topic, **spec)
        made.append(job)
        return job

    yield make
    for job in made:
        job.close()
