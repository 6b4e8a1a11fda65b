"""The job dies: what send() had accepted is delivered by its orphans, exactly once, and then nothing of it is left.

With the network process dead as well nobody is left who could deliver: what the broker had appended by then stays, in
order and without gaps, the rest is lost, no line is logged, and the workers end by themselves.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.integration.deaths.conftest import MakeJob
from tests.integration.deaths.jobs import NETWORK, Job
from tests.integration.deaths.records import READ_TIMEOUT_S, Counts, check, count, read_and_count
from tests.integration.pipeline.looks import until
from tests.support.kafka import KafkaCluster, read_back

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

PARTITIONS: Final = 4
RECORDS: Final = 10_000
# So that of what was sent before the death some batches are full, and sealed, and some are still open when it comes.
LINGERING: Final[dict[str, Any]] = {
    "linger_ms": 60_000,
    "workers": 2,
    "buffer_memory": "16MiB",
    "batch_size": "256KiB",
}
# A program that starts the job and then waits for none but the job: the orphans become its children, unreaped.
REAPS_NOBODY: Final = (sys.executable, "-c", """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
job = subprocess.Popen(sys.argv[1:])
job.wait()
sys.stdin.read()  # until the test is over
""")  # fmt: skip


@contextmanager
def paused(kafka: KafkaCluster) -> Iterator[None]:
    """A broker that answers nothing while the block runs."""
    kafka.pause(1)
    try:
        yield
    finally:
        kafka.resume(1)


@pytest.fixture
def kafka1(kafka_behind_proxy: KafkaCluster) -> KafkaCluster:
    """The broker that may be paused."""
    return kafka_behind_proxy


def job_that_has_sent(make_job: MakeJob, kafka: KafkaCluster, topic: str, **spec: Any) -> Job:
    """A job whose records all lie in open and sealed batches; call it with the broker paused from 'begun' on."""
    settings = LINGERING | spec.pop("settings", {})
    told: dict[str, Any] = {"records": RECORDS, "partitions": PARTITIONS, "filling": 250} | spec
    job = make_job(kafka.bootstrap_servers, topic, settings=settings, **told)
    job.hear()
    return job


def let_send_all(job: Job) -> None:
    """Let it send; afterwards none is acknowledged, as the broker is paused."""
    job.say()
    batches = job.hear()
    assert batches["open"] > 0
    assert batches["sealed"] + batches["compressing"] + batches["ready"] + batches["in_flight"] > 0


def check_delivered_by_orphans(job: Job, kafka: KafkaCluster, topic: str, records: int = RECORDS) -> None:
    """All there, nobody left, one line in the log. The first record was delivered before."""
    job.await_gone()
    assert check(kafka, topic, {"t0": records}) == records
    [line] = job.log_lines()
    said = (
        rf"slabpress: job \d+ ended without closing its producers: {records - 1} records delivered after it, 0 failed "
    )
    assert re.fullmatch(said + r"\(\d+ batches were still open\)", line)


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_kill_9_of_the_job_with_10000_records_in_open_and_sealed_batches(
    kafka1: KafkaCluster, topic: str, make_job: MakeJob, codec: str
) -> None:
    """Without compression what is sealed waits in its slabs to be sent; else workers go on with it."""
    kafka1.create_topic(topic, PARTITIONS)
    job = job_that_has_sent(make_job, kafka1, topic, settings={"compression_type": codec})
    with paused(kafka1):
        let_send_all(job)
        job.kill()
        job.await_drain()
        assert len(job.children()) == 3
        assert job.log_lines() == []
    check_delivered_by_orphans(job, kafka1, topic)


def test_os_exit_of_the_job(kafka1: KafkaCluster, topic: str, make_job: MakeJob) -> None:
    kafka1.create_topic(topic, PARTITIONS)
    job = job_that_has_sent(make_job, kafka1, topic, end="exit")
    with paused(kafka1):
        let_send_all(job)
        job.note_memory()
        job.say()
        assert job.process.wait(60) == 3
        job.await_drain()
    check_delivered_by_orphans(job, kafka1, topic)


def test_kill_9_of_the_jobs_process_group(kafka1: KafkaCluster, topic: str, make_job: MakeJob) -> None:
    """The children are in sessions of their own."""
    kafka1.create_topic(topic, PARTITIONS)
    job = job_that_has_sent(make_job, kafka1, topic)
    with paused(kafka1):
        let_send_all(job)
        job.kill(group=True)
        job.await_drain()
    check_delivered_by_orphans(job, kafka1, topic)


def test_sigterm_of_a_job_that_does_not_handle_it(kafka1: KafkaCluster, topic: str, make_job: MakeJob) -> None:
    """Its default action ends the job as kill -9 does; sent to the whole group, the children do not mind it."""
    kafka1.create_topic(topic, PARTITIONS)
    job = job_that_has_sent(make_job, kafka1, topic)
    with paused(kafka1):
        let_send_all(job)
        for child in job.children():
            os.kill(child.pid, signal.SIGTERM)
        job.kill(signal.SIGTERM, group=True)
        assert job.process.wait(60) == -signal.SIGTERM
        job.await_drain()
    check_delivered_by_orphans(job, kafka1, topic)


def test_kill_9_of_the_job_without_orphan_drain_ends_the_children_at_once(
    kafka1: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    kafka1.create_topic(topic, PARTITIONS)
    job = job_that_has_sent(make_job, kafka1, topic, settings={"orphan_drain": False})
    with paused(kafka1):
        let_send_all(job)
        job.kill()
        job.await_gone()  # while nothing can be delivered
    found = read_and_count(kafka1, topic, {"t0": RECORDS})
    assert (found.doubled, found.reordered) == (0, 0)
    assert found.lost > 0
    assert job.log_lines() == []


@pytest.mark.parametrize("codec", ["none", "gzip", "lz4"])
def test_kill_9_of_the_job_during_send(kafka1: KafkaCluster, topic: str, make_job: MakeJob, codec: str) -> None:
    """Two threads send all the time: of each, one record at most is there whose send() has not returned."""
    kafka1.create_topic(topic, PARTITIONS)
    settings = {"compression_type": codec, "buffer_memory": "2MiB", "workers": 2, "linger_ms": 5}
    job = make_job(kafka1.bootstrap_servers, topic, threads=2, partitions=PARTITIONS, filling=100, settings=settings)
    job.hear()
    job.say()
    until(lambda: min(job.tally.claims[0].accepted, job.tally.claims[1].accepted) > 10_000, "both threads to send")
    job.kill()
    job.await_gone()
    accepted, attempted = job.sent()
    assert all(0 <= attempted[name] - accepted[name] <= 1 for name in accepted)
    check(kafka1, topic, accepted, attempted=attempted)
    assert len(job.log_lines()) == 1


def test_kill_9_of_the_job_and_then_of_a_worker_of_its_orphans(
    kafka1: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    """The worker is stopped with batches in its hands before the job dies; the other takes them over."""
    check_job_and_worker(kafka1, topic, make_job)


def test_kill_9_of_the_job_and_of_a_worker_where_nobody_reaps_orphans(
    kafka1: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    """As in a container whose first process does not wait for what it has not started."""
    check_job_and_worker(kafka1, topic, make_job, before=REAPS_NOBODY)


def check_job_and_worker(kafka: KafkaCluster, topic: str, make_job: MakeJob, **spec: Any) -> None:
    kafka.create_topic(topic, PARTITIONS)
    settings = {"compression_type": "gzip", "compression_level": 9}
    job = job_that_has_sent(make_job, kafka, topic, settings=settings, filling=500, **spec)
    with paused(kafka):
        workers = job.stop_workers()
        let_send_all(job)
        victim = job.let_one_begin(workers)
        job.kill()
        job.await_drain()
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: not victim.is_alive(), "the worker to be gone")
    check_delivered_by_orphans(job, kafka, topic)


def test_kill_9_of_the_network_process_and_then_of_the_job(kafka1: KafkaCluster, topic: str, make_job: MakeJob) -> None:
    check_network_and_job(kafka1, topic, make_job)


def test_kill_9_of_the_network_process_and_of_the_job_where_nobody_reaps_orphans(
    kafka1: KafkaCluster, topic: str, make_job: MakeJob
) -> None:
    check_network_and_job(kafka1, topic, make_job, before=REAPS_NOBODY)


def check_network_and_job(kafka: KafkaCluster, topic: str, make_job: MakeJob, **spec: Any) -> None:
    """The job is stopped in between, so that it cannot start another network process."""
    kafka.create_topic(topic)
    job = job_that_has_sent(make_job, kafka, topic, partitions=1, **spec)
    with paused(kafka):
        let_send_all(job)
        job.note_memory()
        os.kill(job.pid, signal.SIGSTOP)
        [network] = job.children(NETWORK)
        os.kill(network.pid, signal.SIGKILL)
        job.kill()
        job.await_gone()
    # What the broker's socket held when the network process died may be appended yet.
    read = list(read_back(kafka.bootstrap_servers, topic, timeout_s=READ_TIMEOUT_S))
    found = count(read, {"t0": RECORDS})
    assert found == Counts(len(read), lost=RECORDS - len(read), doubled=0, reordered=0)
    assert count(read, {"t0": len(read)}, {"t0": RECORDS}).lost == 0  # there are no gaps
    assert job.log_lines() == []
