"""In a container: the memory limit that a plan promises is enough, and /dev/shm may be as small as it likes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition

from slabpress import Config, MemoryPlan, plan_memory
from slabpress.footprints import COORDINATOR_LINE
from slabpress.units import format_bytes
from tests.support.brokers import require_kafka
from tests.support.cgroup import MemoryCgroup, why_not
from tests.support.kafka import KafkaCluster
from tests.support.kafka_install import spawn, wait_until
from tests.support.mock_cluster import MockCluster

SETTINGS: Final[dict[str, Any]] = {"buffer_memory": "64MiB", "workers": 2, "compression_type": "lz4"}
PARTITIONS: Final = 4
TWO_GB: Final = 2_000_000_000
OUTAGE_S: Final = 3.0
NEWS_TIMEOUT_S: Final = 30.0
# Three such waits fit in the longest test's time.
STATE_TIMEOUT_S: Final = 90.0
# The job, the network process and the workers.
FAMILY: Final = 1 + 1 + SETTINGS["workers"]
SMALL_BYTES: Final = 64 << 10
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - looked at, never written to

# A user's program. Its records are made once, so that what it takes for itself does not grow; 2000 of a round go by
# send_many(), one by send(). It tells of its state every tenth of a second, as JSON, and closes when its stdin ends.
JOB: Final = """
import json, os, sys, threading

order = json.loads(sys.argv[1])
NOTE = ', "agent": "Mozilla/5.0 (X11; Linux x86_64)", "referrer": "https://shop.example/items?page=%d", "took_ms": %d}'
keys = [b"user-%d" % (number * 7919 % 100_003) for number in range(2000)]
lines = [
    ('{"id": %d, "path": "/items/%d", "status": 200, "user": "%s"' % (number, number * 31 % 9973, key.decode())
    + NOTE % (number * 17 % 97, number * 13 % 997)).encode()
    for number, key in enumerate(keys)
]
round_bytes = sum(map(len, keys)) + sum(map(len, lines)) + len(keys[0]) + len(lines[0])
if order is None:
    sys.exit()  # that is what such a program takes without slabpress

from slabpress import Producer

sent = sent_bytes = 0
kept = []
done = threading.Event()


def tell():
    stats = producer.stats()
    shared = os.statvfs("/dev/shm")
    state = {
        "sent": sent,
        "sent_bytes": sent_bytes,
        "accepted": stats.records_accepted,
        "delivered": stats.records_delivered,
        "failed": stats.records_failed,
        "free_slabs": stats.slabs["free"],
        "planned_bytes": stats.memory_planned_bytes,
        "shared_memory_bytes": shared.f_blocks * shared.f_frsize,
    }
    print(json.dumps(state), flush=True)


def tell_often():
    while not done.wait(0.1):
        tell()


with Producer(order["servers"], **order["settings"]) as producer:
    teller = threading.Thread(target=tell_often)
    teller.start()
    try:
        while sent_bytes < order["total_bytes"]:
            producer.send_many(order["topic"], lines, keys=keys)
            producer.send(order["topic"], lines[0], key=keys[0])
            sent += len(lines) + 1
            sent_bytes += round_bytes
            kept.append(bytearray(order["kept_bytes"]))
        producer.flush()
        sys.stdin.read()
    finally:
        done.set()
        teller.join()
tell()
"""

State = dict[str, Any]


def job_argv(order: State | None) -> list[str]:
    return [sys.executable, "-c", JOB, json.dumps(order)]


def order_for(servers: str, topic: str, total_bytes: int, kept_bytes: int = 0) -> State:
    """What the job is to do; `kept_bytes` is what it keeps of each round, beside everything that is planned."""
    return {
        "servers": servers,
        "topic": topic,
        "total_bytes": total_bytes,
        "kept_bytes": kept_bytes,
        "settings": SETTINGS,
    }


class Job:
    """A running job, and what it tells.

    Args:
        process: The job; its standard output and error are pipes.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._text = b""

    def state(self) -> State:
        """The last that the job has told, waiting for news."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._text:
            ready, _, _ = select.select([pipe], [], [], NEWS_TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"the job has told nothing for {NEWS_TIMEOUT_S:g} s")
            data = os.read(pipe, 65536)
            if not data:
                raise AssertionError(f"the job ended: {self.end()}")
            self._text += data
        return self._take_last()

    def _take_last(self) -> State:
        *_, last, self._text = self._text.split(b"\n")
        state: State = json.loads(last)
        return state

    def until(self, condition: Callable[[State], bool], what: str, timeout_s: float = STATE_TIMEOUT_S) -> State:
        """The first state that fulfils the condition."""
        deadline = time.monotonic() + timeout_s
        while not condition(state := self.state()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not so within {timeout_s:g} s: {state}")
        return state

    def until_stuck(self, seconds: float) -> State:
        """The state of the job once it could send nothing for so long."""
        accepted, since = -1, 0.0

        def is_stuck(state: State) -> bool:
            nonlocal accepted, since
            if state["accepted"] != accepted:
                accepted, since = state["accepted"], time.monotonic()
            return time.monotonic() - since >= seconds

        return self.until(is_stuck, "the arena is full")

    def family(self) -> set[int]:
        """The job and all its descendants."""
        return {self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))}

    def end(self) -> tuple[int, str]:
        """Let the job end and wait for it: its exit code and what it has said to standard error."""
        out, errors = self.process.communicate(timeout=STATE_TIMEOUT_S)
        self._text += out
        return self.process.returncode, errors.decode()

    def finish(self) -> State:
        """The last state of a job that must end well."""
        assert self.end() == (0, "")
        return self._take_last()


def start_in(group: MemoryCgroup, order: State) -> Job:
    """Start the job in a cgroup, which ends it."""
    return Job(group.popen(job_argv(order), stdout=subprocess.PIPE, stderr=subprocess.PIPE))


@contextlib.contextmanager
def started(argv: Sequence[str]) -> Iterator[Job]:
    """A job that lives no longer than the block."""
    with spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield Job(process)
        finally:
            process.kill()


def stored_records(servers: str, topic: str) -> int:
    """How many records the brokers have stored, asked by another client."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "counts", "log_level": 2})
    count = 0
    try:
        for partition in range(PARTITIONS):
            marks = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
            assert marks is not None, f"no answer about partition {partition} of {topic}"
            count += marks[1]
    finally:
        consumer.close()
    return count


def check_delivery(last: State, servers: str, topic: str, least_bytes: int) -> None:
    """Assert that all was sent, and that what was sent was accepted, delivered and stored, once each."""
    assert last["sent_bytes"] >= least_bytes
    assert (last["accepted"], last["delivered"], last["failed"]) == (last["sent"], last["sent"], 0)
    assert stored_records(servers, topic) == last["sent"]


@pytest.fixture
def proxied_kafka() -> Iterator[KafkaCluster]:
    """A broker whose acknowledgements can be stopped; it is gone when the other tests run."""
    require_kafka()
    with KafkaCluster(1, proxied=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sink() -> Iterator[MockCluster]:
    """Librdkafka's mock cluster, which needs no Java."""
    with MockCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    return plan_memory(Config.of("localhost:9092", **SETTINGS))


@pytest.fixture(scope="module")
def own_bytes() -> int:
    """What the job takes without slabpress: a bare interpreter and its 2000 records, measured in a cgroup."""
    missing = why_not()
    if missing is not None:
        pytest.skip(missing)
    with MemoryCgroup(256 << 20) as group:
        done = group.run(job_argv(None))
        assert done.returncode == 0, done.stderr
        return group.peak_bytes


@pytest.fixture(scope="module")
def limit_bytes(plan: MemoryPlan, own_bytes: int) -> int:
    """What a user would give the container: the plan and a tenth, and what the program takes anyway.

    The plan's coordinator line is what importing slabpress adds to an interpreter, so the interpreter comes on top.
    """
    return plan.total_bytes * 11 // 10 + own_bytes


def read_files_once(sink: MockCluster) -> None:
    """Have all files of a job read and compiled once, outside of the cgroup whose peak is to be measured.

    The kernel charges the page cache of a file to the cgroup that reads it first, and takes it back when room is
    short: it kills nobody, but the peak with it tells nothing of the producer.
    """
    sink.create_topic("once")
    with started(job_argv(order_for(sink.bootstrap_servers, "once", 1))) as job:
        job.finish()


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_two_gb_pass_through_an_outage_within_the_planned_memory(
    proxied_kafka: KafkaCluster,
    sink: MockCluster,
    topic: str,
    plan: MemoryPlan,
    own_bytes: int,
    limit_bytes: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxied_kafka.create_topic(topic, PARTITIONS)
    proxy = proxied_kafka.proxies[1]
    read_files_once(sink)
    with MemoryCgroup(limit_bytes) as group:
        job = start_in(group, order_for(proxied_kafka.proxied_bootstrap_servers, topic, TWO_GB))
        job.until(lambda state: state["sent_bytes"] > TWO_GB // 2, "half is sent")
        proxy.pause()
        try:
            stuck = job.until_stuck(OUTAGE_S)
            family = job.family()
            assert len(family) == FAMILY
            assert group.pids() == family  # all of the job, and neither the broker nor the proxy
        finally:
            proxy.resume()
        assert stuck["free_slabs"] == 0
        assert stuck["delivered"] < stuck["accepted"]

        last = job.finish()
        figures = (
            f"{last['sent_bytes']:,} bytes in {last['sent']:,} records: the peak is {group.peak_bytes:,} bytes, "
            f"the limit {limit_bytes:,}: {plan.total_bytes:,} planned + 10% + {own_bytes:,} of the program itself"
        )
        with capsys.disabled():
            sys.stdout.write(f"\n{figures}\n")
        assert group.oom_kills == 0
        assert group.pids() == set()
        # The arena is charged to the group, and the tenth was not needed.
        assert plan.arena_bytes < group.peak_bytes < plan.total_bytes + own_bytes < limit_bytes, figures
    assert last["planned_bytes"] == plan.total_bytes
    check_delivery(last, proxied_kafka.bootstrap_servers, topic, TWO_GB)


def test_what_a_job_takes_beside_its_plan_is_killed_by_the_same_limit(
    sink: MockCluster, topic: str, limit_bytes: int
) -> None:
    """So the limit bites; and the children do not outlive the job."""
    sink.create_topic(topic, PARTITIONS)
    with MemoryCgroup(limit_bytes) as group:
        job = start_in(group, order_for(sink.bootstrap_servers, topic, TWO_GB, kept_bytes=1 << 20))
        assert job.end() == (-signal.SIGKILL, "")
        assert group.oom_kills >= 1
        wait_until(lambda: not group.pids(), "the children end", 30)


def test_a_limit_below_the_plan_is_an_error_at_construction(topic: str, plan: MemoryPlan, own_bytes: int) -> None:
    """The producer reads its cgroup's limit: it refuses what the kernel would kill later."""
    with MemoryCgroup(plan.total_bytes * 3 // 4 + own_bytes) as group:
        code, errors = start_in(group, order_for("127.0.0.1:1", topic, TWO_GB)).end()
        assert code == 1
        # The job has imported slabpress already: that line is taken, the others are to come.
        to_come = sum(line.total_bytes for line in plan.lines if line.name != COORDINATOR_LINE)
        assert f"MemoryShortError: the plan takes {format_bytes(to_come)} (" in errors
        assert group.oom_kills == 0
        assert group.peak_bytes < plan.arena_bytes  # it had not allocated anything
        assert group.pids() == set()


def with_small_shared_memory(argv: Sequence[str]) -> list[str]:
    """The command that runs a program where /dev/shm is a file system of 64 KiB; skips where that is not permitted."""
    mount = f'mount -t tmpfs -o size={SMALL_BYTES} tmpfs {SHARED_MEMORY} && exec "$@"'
    refused = []
    for options in (["-m"], ["-r", "-m"]):  # as root, or as the root of a user namespace of its own
        prefix = ["unshare", *options, "sh", "-c", mount, "sh"]
        try:
            tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False, timeout=30)
        except FileNotFoundError as error:
            pytest.skip(f"no mount namespace can be made: {error}")
        if tried.returncode == 0:
            return [*prefix, *argv]
        refused.append(tried.stderr.strip())
    pytest.skip(f"no mount namespace with a {SHARED_MEMORY} of its own can be made: {'; '.join(refused)}")


def test_a_tiny_dev_shm_does_not_matter(sink: MockCluster, topic: str, plan: MemoryPlan) -> None:
    """Containers have 64 MiB of it; here it is a thousandth of the arena, which is filled three times."""
    sink.create_topic(topic, PARTITIONS)
    total = 3 * plan.arena_bytes
    with started(with_small_shared_memory(job_argv(order_for(sink.bootstrap_servers, topic, total)))) as job:
        last = job.finish()
    assert last["shared_memory_bytes"] == SMALL_BYTES
    check_delivery(last, sink.bootstrap_servers, topic, total)


def mappings(pid: int) -> list[tuple[str, str]]:
    """What a process has mapped: permissions and path."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [(fields[1], fields[5] if len(fields) > 5 else "") for fields in lines]


def test_nothing_is_ever_made_in_dev_shm(sink: MockCluster, topic: str, plan: MemoryPlan) -> None:
    """Neither a file that stays nor one that is removed as soon as it is mapped, as a semaphore's is."""
    sink.create_topic(topic, PARTITIONS)
    before, seen = set(SHARED_MEMORY.iterdir()), set[Path]()
    total = 3 * plan.arena_bytes

    def is_delivered(state: State) -> bool:
        seen.update(SHARED_MEMORY.iterdir())
        return bool(state["sent_bytes"] >= total and state["delivered"] == state["sent"])

    with started(job_argv(order_for(sink.bootstrap_servers, topic, total))) as job:
        job.until(is_delivered, "all is delivered")
        family = job.family()  # it lives until its standard input ends
        assert len(family) == FAMILY
        for pid in family:
            mapped = mappings(pid)
            assert [path for _, path in mapped if path.startswith(str(SHARED_MEMORY))] == []
            shared = [path for permissions, path in mapped if permissions.startswith("rw-s")]
            assert shared  # the arena and the control block
            assert [path for path in shared if not path.startswith("/memfd:")] == []
        last = job.finish()
    check_delivery(last, sink.bootstrap_servers, topic, total)
    seen.update(SHARED_MEMORY.iterdir())
    assert seen - before == set()
