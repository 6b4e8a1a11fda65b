"""One side of the interference comparison, in a process of its own: ``python -m bench.interference_side JSON``.

A job that computes in pure Python (it parses JSON and counts in dicts), and by turns does no more than that, or hands a
block of records to a producer after each piece of work. It prints one JSON line: how long the work and the handing over
took in either kind of turn, and what CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from bench.data import json_lines
from bench.pacing import NS_PER_S

BLOCK: Final = 1000
# Blocks of a turn: 0.1 s at 50 MB/s. What else the machine does changes within seconds.
TURN: Final = 25
NOTHING: Final = "no producer"
# Between turns the job sleeps for so many periods, and what was handed over is delivered.
_PAUSE: Final = 5
_DISTINCT: Final = 50_000
_LINGER_MS: Final = 5
_PATIENCE_S: Final = 60.0

Send = Callable[[list[bytes]], object]


class Job(NamedTuple):
    """What a side is asked to do: ``turns`` with the producer and as many without, of TURN periods each.

    In every period ``items`` pieces of work, and with the producer BLOCK records.
    """

    side: str
    codec: str
    items: int
    turns: int
    period_ns: int
    pinned: bool
    bootstrap_servers: str
    topic: str


class Tally:
    """What the work counts; it stays small."""

    def __init__(self) -> None:
        self.visits: dict[str, int] = {}
        self.slowest: dict[tuple[str, str], int] = {}

    def work(self, lines: Sequence[bytes]) -> None:
        """Parse and count; nothing here releases the interpreter's lock."""
        visits, slowest = self.visits, self.slowest
        for line in lines:
            event = json.loads(line)
            page, agent = event["page"], event["agent"]
            visits[page] = visits.get(page, 0) + 1
            key = (page, agent)
            if event["ms"] > slowest.get(key, -1):
                slowest[key] = event["ms"]


def seconds_an_item(repeats: int = 20) -> float:
    """CPU seconds of one item, the median of some hundreds at a time: to choose how many make up a period."""
    lines, tally = json_lines(BLOCK), Tally()
    took = []
    for _ in range(repeats):
        start = time.thread_time_ns()
        tally.work(lines)
        took.append(time.thread_time_ns() - start)
    return sorted(took)[repeats // 2] / NS_PER_S / BLOCK


@contextlib.contextmanager
def nothing(job: Job) -> Iterator[Send]:  # noqa: ARG001 - as the others are called
    """The job alone, paced alike."""
    yield len


@contextlib.contextmanager
def slabpress_producer(job: Job) -> Iterator[Send]:
    """slabpress, one record or one block a call."""
    from slabpress import Producer

    kind, _, level = job.codec.partition(":")
    codec: dict[str, Any] = {"compression_type": kind, "compression_level": int(level) if level else None}
    with Producer(job.bootstrap_servers, linger_ms=_LINGER_MS, enable_idempotence=False, **codec) as producer:
        producer.send(job.topic, b"first").result(30)
        topic, send, send_many = job.topic, producer.send, producer.send_many

        def one_by_one(block: list[bytes]) -> None:
            for value in block:
                send(topic, value)

        yield one_by_one if job.side.endswith("send") else lambda block: send_many(topic, block)


@contextlib.contextmanager
def confluent_producer(job: Job) -> Iterator[Send]:
    """confluent-kafka, with librdkafka's advice for throughput, reports served once a block."""
    from confluent_kafka import Producer

    kind, _, level = job.codec.partition(":")
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "compression.type": kind,
            "compression.level": int(level) if level else -1,
            "linger.ms": _LINGER_MS,
            "batch.size": 1_000_000,
            "batch.num.messages": 100_000,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
            "acks": "all",
        }
    )
    producer.produce(job.topic, b"first")
    producer.flush(30)
    topic = job.topic

    def one_by_one(block: list[bytes]) -> None:
        produce = producer.produce
        for value in block:
            produce(topic, value)
        producer.poll(0)

    def batched(block: list[bytes]) -> None:
        producer.produce_batch(topic, [{"value": value} for value in block])
        producer.poll(0)

    yield batched if job.side.endswith("produce_batch") else one_by_one
    if left := producer.flush(_PATIENCE_S):
        raise RuntimeError(f"{left} records were not delivered")


SIDES: dict[str, Callable[[Job], contextlib.AbstractContextManager[Send]]] = {
    NOTHING: nothing,
    "slabpress send_many": slabpress_producer,
    "slabpress send": slabpress_producer,
    "confluent produce": confluent_producer,
    "confluent produce_batch": confluent_producer,
}


def give_this_thread_a_core() -> None:
    """This thread on the first CPU; every other thread, and what was started before, on the others."""
    this = int(Path("/proc/thread-self").readlink().name)
    first, others = split_cpus(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0) | _all_cpus())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(int(task.name), {first} if int(task.name) == this else others)


def split_cpus(cpus: set[int]) -> tuple[int, set[int]]:
    """The first CPU, and the others."""
    first = min(cpus)
    if len(cpus) == 1:
        raise ValueError("a core of its own for the job's thread takes two CPUs at least, here is 1")
    return first, cpus - {first}


def _all_cpus() -> set[int]:
    return set(range(os.cpu_count() or 1))


def _processor_s() -> tuple[float, float]:
    """CPU seconds of this process, and of its living children."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    children = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return use.ru_utime + use.ru_stime, float(children)


def run(job: Job) -> dict[str, dict[str, float]]:
    """Work, by turns with sending and without: what each took in all.

    Without, with, with, without: a drift of the machine's speed weighs on both alike.
    """
    lines = json_lines(_DISTINCT)
    blocks = [lines[start : start + BLOCK] for start in range(0, _DISTINCT, BLOCK)]
    tally = Tally()
    spent: dict[str, Counter[str]] = {"alone": Counter(), "producing": Counter()}
    with SIDES[job.side](job) as send:
        if job.pinned:
            give_this_thread_a_core()
        for number in range(2 * job.turns):
            time.sleep(_PAUSE * job.period_ns / NS_PER_S)
            is_producing = number % 4 in (1, 2)
            took = take_turn(job, blocks, tally, send if is_producing else len)
            spent["producing" if is_producing else "alone"].update(took)
    return {kind: dict(figures) for kind, figures in spent.items()}


def take_turn(job: Job, blocks: list[list[bytes]], tally: Tally, send: Send) -> dict[str, float]:
    """Work and send, one block a period, or as soon after it as may be."""
    rounds, rest = divmod(job.items, BLOCK)
    now, cpu = time.perf_counter_ns, time.thread_time_ns
    work_ns = work_cpu_ns = send_ns = send_cpu_ns = 0
    own, children = _processor_s()
    preempted = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    begin = now()
    for number in range(TURN):
        wait_ns = begin + number * job.period_ns - now()
        if wait_ns > 0:
            time.sleep(wait_ns / NS_PER_S)
        block = blocks[number % len(blocks)]
        start, cpu_start = now(), cpu()
        for _ in range(rounds):
            tally.work(block)
        tally.work(block[:rest])
        worked, cpu_worked = now(), cpu()
        send(block)
        send_ns += now() - worked
        send_cpu_ns += cpu() - cpu_worked
        work_ns += worked - start
        work_cpu_ns += cpu_worked - cpu_start
    wall_s = (now() - begin) / NS_PER_S
    preempted = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - preempted
    own_after, children_after = _processor_s()
    return {
        "wall_s": wall_s,
        "work_s": work_ns / NS_PER_S,
        "work_cpu_s": work_cpu_ns / NS_PER_S,
        "send_s": send_ns / NS_PER_S,
        "send_cpu_s": send_cpu_ns / NS_PER_S,
        "process_cpu_s": own_after - own,
        "children_cpu_s": children_after - children,
        "preempted": float(preempted),
    }


def main() -> None:
    """Run the job in ``argv[1]``."""
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
