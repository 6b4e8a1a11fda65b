"""Processes that stop for longer than a request may take, and go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Final

import pytest

from tests.integration.deaths.conftest import MakeJob
from tests.integration.deaths.jobs import NETWORK, WORKER, Job
from tests.integration.deaths.records import check
from tests.integration.pipeline.looks import until
from tests.support.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS: Final = 3
SETTINGS: Final[dict[str, Any]] = {
    "request_timeout_ms": 1000,
    "max_block_ms": 120_000,
    "buffer_memory": "1MiB",
    "workers": 2,
}


def sending_job(make_job: MakeJob, kafka: KafkaCluster, topic: str, codec: str = "lz4") -> Job:
    """A job that sends all the time, with two threads."""
    kafka.create_topic(topic, PARTITIONS)
    settings = SETTINGS | {"compression_type": codec}
    job = make_job(
        kafka.bootstrap_servers, topic, threads=2, partitions=PARTITIONS, pause_s=0.0003, filling=400, settings=settings
    )
    job.hear()
    job.say()
    goes_on(job)
    return job


def goes_on(job: Job) -> None:
    """Wait until each thread has sent so much more that something was delivered for it: the arena holds less."""
    goals = [job.tally.claims[thread].accepted + 1500 for thread in range(2)]
    until(lambda: all(job.tally.claims[thread].accepted >= goal for thread, goal in enumerate(goals)), "it to go on")


def check_all_delivered(job: Job, kafka: KafkaCluster, topic: str) -> None:
    """The job ends by itself, and everything is there."""
    goes_on(job)
    job.note_memory()
    job.say()
    assert job.process.wait(60) == 0
    job.await_gone()
    accepted, attempted = job.sent()
    assert accepted == attempted
    assert check(kafka, topic, accepted) == sum(accepted.values())
    assert job.log_lines() == []


def processes(job: Job) -> dict[str, int]:
    """One of each kind."""
    return {"job": job.pid, "worker": job.children(WORKER)[0].pid, "network process": job.children(NETWORK)[0].pid}


@pytest.mark.parametrize(
    ("stopped", "codec"),
    [("job", "lz4"), ("job", "none"), ("worker", "lz4"), ("network process", "lz4"), ("network process", "none")],
)
def test_sigstop_longer_than_the_request_timeout_of_the(
    kafka: KafkaCluster, topic: str, make_job: MakeJob, stopped: str, codec: str
) -> None:
    job = sending_job(make_job, kafka, topic, codec)
    pid = processes(job)[stopped]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)  # not a wait for a state: the time in which nothing moves
    os.kill(pid, signal.SIGCONT)
    check_all_delivered(job, kafka, topic)


def test_sigstop_of_every_kind_of_process_for_30_seconds(kafka: KafkaCluster, topic: str, make_job: MakeJob) -> None:
    """One after the other stops, and goes on after its 30 seconds, when others still stand still."""
    job = sending_job(make_job, kafka, topic)
    pids = processes(job)
    for kind in ("worker", "network process", "job"):
        os.kill(pids[kind], signal.SIGSTOP)
        time.sleep(1.0)
    time.sleep(30 - 3 * 1.0)
    for kind in ("worker", "network process", "job"):
        os.kill(pids[kind], signal.SIGCONT)
        time.sleep(1.0)
    check_all_delivered(job, kafka, topic)
