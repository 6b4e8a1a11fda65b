"""The job is asked to end, and flushes first."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.integration.deaths.conftest import MakeJob
from tests.integration.deaths.records import check
from tests.support.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

RECORDS = 10_000


def check_ends_politely(make_job: MakeJob, kafka: KafkaCluster, topic: str, **spec: Any) -> None:
    """The signal comes when everything lingers; the job ends with the code of its handler, and all is delivered."""
    kafka.create_topic(topic, 4)
    job = make_job(
        kafka.bootstrap_servers,
        topic,
        records=RECORDS,
        partitions=4,
        filling=100,
        sigterm=True,
        settings={"linger_ms": 60_000, "workers": 2},
        **spec,
    )
    job.hear()
    job.say()
    assert job.hear()["open"] > 0
    job.kill(signal.SIGTERM)
    assert job.process.wait(60) == 4
    job.await_gone()
    assert check(kafka, topic, {"t0": RECORDS}) == RECORDS
    assert job.log_lines() == []  # there were no orphans


def test_sigterm_with_a_handler_that_raises_system_exit_in_a_with_block(
    kafka: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    check_ends_politely(make_job, kafka, topic, **{"with": True})


def test_sigterm_with_a_handler_that_raises_system_exit_and_nothing_that_closes(
    kafka: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    check_ends_politely(make_job, kafka, topic)
