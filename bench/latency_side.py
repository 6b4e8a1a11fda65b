"""One side of the latency comparison, in a process of its own: ``python -m bench.latency_side JSON``.

Every side is driven by the same pacer, and takes the time of each record's delivery in its own delivery callback, one
a record. Records of the first second are sent and not counted. It prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import psutil

from bench.data import json_lines
from bench.pacing import NS_PER_S, Schedule, pace
from bench.report import percentiles

WARM_UP_S: Final = 1.0
PATIENCE_S: Final = 60.0
POLL_S: Final = 0.05
_DISTINCT: Final = 10_000


class Job(NamedTuple):
    """What a side is asked to do."""

    side: str
    rate: int
    seconds: float
    linger_ms: int
    acks: str
    codec: str
    bootstrap_servers: str
    topic: str


class Times:
    """When each record was due, sent and delivered.

    Attributes:
        called_ns: of each record the time of its ``send``.
        failures: how many records failed, and the last reason.
    """

    def __init__(self, job: Job) -> None:
        self.schedule = Schedule(job.rate, WARM_UP_S + job.seconds)
        records = self.schedule.records
        self.called_ns = array("q", bytes(8 * records))
        self.delivered_ns = array("q", bytes(8 * records))
        self.first_tick_ns = 0
        self.failures: list[str] = []

    def delivered(self, number: int, _: object = None) -> None:
        """A record was delivered now."""
        self.delivered_ns[number] = time.perf_counter_ns()

    def figures(self) -> dict[str, Any]:
        """Percentiles in microseconds, of the records after the first second."""
        missing = sum(1 for at_ns in self.delivered_ns if not at_ns)
        if missing or self.failures:
            raise SystemExit(f"{missing} of {len(self.delivered_ns)} records were not delivered: {self.failures[-1:]}")
        due = self.schedule.due_ns(self.first_tick_ns)
        first = self.schedule.due_before(int(WARM_UP_S * NS_PER_S) // self.schedule.tick_ns)
        counted = range(first, len(due))
        return {
            "from_due_us": percentiles([(self.delivered_ns[n] - due[n]) / 1000 for n in counted]),
            "from_call_us": percentiles([(self.delivered_ns[n] - self.called_ns[n]) / 1000 for n in counted]),
            "pacer_late_us": percentiles([(self.called_ns[n] - due[n]) / 1000 for n in counted]),
        }


def slabpress_side(job: Job, values: list[bytes], times: Times) -> None:
    """slabpress: ``send`` with a callback, which runs on its callback thread."""
    from slabpress import Producer

    acks: Any = job.acks if job.acks == "all" else int(job.acks)
    settings: dict[str, Any] = {"acks": acks, "linger_ms": job.linger_ms, "compression_type": job.codec}
    with Producer(job.bootstrap_servers, enable_idempotence=False, **settings) as producer:
        producer.send(job.topic, b"first").result(30)
        send, topic, delivered = producer.send, job.topic, times.delivered

        def send_one(number: int) -> None:
            send(topic, values[number % _DISTINCT], on_delivery=partial(delivered, number))

        times.first_tick_ns = pace(times.schedule, send_one, times.called_ns)
        producer.flush(PATIENCE_S)


def confluent_side(job: Job, values: list[bytes], times: Times) -> None:
    """confluent-kafka: ``produce`` with a callback, served by a thread that polls, as its documentation has it.

    librdkafka's advice for latency is ``linger.ms=0`` and Nagle's algorithm off. A waiting ``poll`` returns as soon as
    there is a report; its timeout only says how often the thread looks for its end.
    """
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "acks": job.acks,
            "linger.ms": job.linger_ms,
            "compression.type": job.codec,
            "socket.nagle.disable": True,
            "queue.buffering.max.messages": 2_000_000,
        }
    )
    producer.produce(job.topic, b"first")
    producer.flush(30)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            producer.poll(POLL_S)

    def report(number: int, error: object, _: object) -> None:
        if error is None:
            times.delivered(number)
        else:
            times.failures.append(str(error))

    poller = threading.Thread(target=serve, name="poller")
    poller.start()
    produce, topic = producer.produce, job.topic

    def send_one(number: int) -> None:
        produce(topic, values[number % _DISTINCT], on_delivery=partial(report, number))

    times.first_tick_ns = pace(times.schedule, send_one, times.called_ns)
    producer.flush(PATIENCE_S)
    over.set()
    poller.join()


def kafka_python_side(job: Job, values: list[bytes], times: Times) -> None:
    """kafka-python: ``send`` and a callback on its future."""
    from kafka import KafkaProducer

    acks: Any = job.acks if job.acks == "all" else int(job.acks)
    codec = None if job.codec == "none" else job.codec
    producer = KafkaProducer(
        bootstrap_servers=job.bootstrap_servers, acks=acks, linger_ms=job.linger_ms, compression_type=codec
    )
    producer.send(job.topic, b"first").get(30)

    def send_one(number: int) -> None:
        future = producer.send(job.topic, values[number % _DISTINCT])
        future.add_callback(partial(times.delivered, number))
        future.add_errback(lambda error: times.failures.append(repr(error)))

    times.first_tick_ns = pace(times.schedule, send_one, times.called_ns)
    producer.flush(PATIENCE_S)
    producer.close()


def aiokafka_side(job: Job, values: list[bytes], times: Times) -> None:
    """aiokafka: the pacer is a task of its event loop, whose timer wakes it."""
    asyncio.run(_aiokafka(job, values, times))


async def _aiokafka(job: Job, values: list[bytes], times: Times) -> None:
    from aiokafka import AIOKafkaProducer

    acks: Any = job.acks if job.acks == "all" else int(job.acks)
    codec = None if job.codec == "none" else job.codec
    async with AIOKafkaProducer(
        bootstrap_servers=job.bootstrap_servers, acks=acks, linger_ms=job.linger_ms, compression_type=codec
    ) as producer:
        await producer.send_and_wait(job.topic, b"first")
        schedule, now = times.schedule, time.perf_counter_ns
        begin = times.first_tick_ns = now() + schedule.tick_ns
        for tick in range(schedule.ticks):
            await asyncio.sleep(max(0, begin + tick * schedule.tick_ns - now()) / NS_PER_S)
            for number in range(schedule.due_before(tick), schedule.due_before(tick + 1)):
                times.called_ns[number] = now()
                future = await producer.send(job.topic, values[number % _DISTINCT])
                future.add_done_callback(partial(times.delivered, number))
        await producer.flush()


SIDES: dict[str, Callable[[Job, list[bytes], Times], None]] = {
    "slabpress": slabpress_side,
    "confluent-kafka": confluent_side,
    "kafka-python": kafka_python_side,
    "aiokafka": aiokafka_side,
}


def _processor_s() -> float:
    """CPU seconds of this process and of its children, those that have ended included."""
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return float(living) + sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    """Run the job in ``argv[1]``."""
    job = Job(**json.loads(sys.argv[1]))
    values, times = json_lines(_DISTINCT), Times(job)
    cpu, start = _processor_s(), time.perf_counter()
    SIDES[job.side](job, values, times)
    figures = times.figures()
    cores = (_processor_s() - cpu) / (time.perf_counter() - start)
    print(json.dumps(figures | {"cores": cores}))


if __name__ == "__main__":
    main()
