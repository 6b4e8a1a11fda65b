"""The Python clients of the memory experiment, each with the same memory setting as far as it has one.

Settings that are the same for all: acks=all, one request in flight, linger 5 ms, and timeouts that are longer than
the stall; anything else is the client's default. The clients are imported here only when they are needed, so that
their code counts as theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from bench.memory_messages import Job
from bench.memory_tally import Client, Drive, Tally, run_threads

LINGER_MS = 5
REQUEST_TIMEOUT_MS = 120_000
DELIVERY_TIMEOUT_MS = 240_000
PIPELINE = "Pipeline"
PIPELINE_WORKERS = 2
PRIVATE_PRODUCERS = 4
ROUND = 64


class Slabpress:
    """slabpress: a Pipeline when there is one, else a few private producers with the same memory in all."""

    def __init__(self, job: Job, tally: Tally) -> None:
        import slabpress
        from slabpress.shm.control import CONTROL_BYTES

        self._tally = tally
        cluster: dict[str, Any] = {
            "max_in_flight_requests_per_connection": 1,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        each: dict[str, Any] = {
            "buffer_memory": job.buffer_bytes,
            "compression_type": job.codec,
            "linger_ms": LINGER_MS,
            "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
            "max_block_ms": REQUEST_TIMEOUT_MS,
        }
        make: Any = getattr(slabpress, PIPELINE, None)
        self._pipeline: Any = None
        if make is not None:
            self._pipeline = make(job.bootstrap_servers, workers=PIPELINE_WORKERS, **cluster)
            self._producers = [self._pipeline.producer(**each) for _ in range(job.producers)]
            self._lanes = self._producers
            how = f"{job.producers} producers of one Pipeline, workers={PIPELINE_WORKERS}"
        else:
            each["buffer_memory"] = job.buffer_bytes * job.producers // PRIVATE_PRODUCERS
            private = cluster | each | {"workers": 1}
            self._producers = [slabpress.Producer(job.bootstrap_servers, **private) for _ in range(PRIVATE_PRODUCERS)]
            self._lanes = [self._producers[index % PRIVATE_PRODUCERS] for index in range(job.producers)]
            how = f"{PRIVATE_PRODUCERS} private producers, workers=1, {job.producers} threads"
        self.settings: dict[str, Any] = {"how": how, **cluster, **each}
        sets = 1 if self._pipeline is not None else len(self._producers)
        self.shared_bytes = sum(int(p.plan.arena_bytes) for p in self._producers) + sets * CONTROL_BYTES
        self.planned_bytes = self._planned()
        self._topic = job.topic

    def _planned(self) -> int:
        plan = getattr(self._pipeline, "plan", None)
        if plan is not None:
            return int(plan.total_bytes)
        return sum(int(producer.plan.total_bytes) for producer in self._producers) if self._pipeline is None else 0

    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send from one thread a producer."""
        tally, topic = self._tally, self._topic
        sends = [lane.send for lane in self._lanes]
        # Bound once: a callback of its own for every record would be this program's memory, not the client's.
        reports = [self._report(index) for index in range(len(sends))]

        def send(index: int, value: bytes) -> bool:
            sends[index](topic, value, on_delivery=reports[index])
            return True

        run_threads(Drive(send, lambda _: None), tally, messages, stopping)
        for producer in self._producers:
            producer.flush()
            producer.close()
        if self._pipeline is not None:
            self._pipeline.close()

    def _report(self, index: int) -> Callable[[Any], None]:
        def report(handle: Any) -> None:
            self._tally.resolve(index, handle.exception(0))

        return report


class Confluent:
    """confluent-kafka (librdkafka)."""

    shared_bytes = 0
    planned_bytes = 0

    def __init__(self, job: Job, tally: Tally) -> None:
        from confluent_kafka import Producer

        self.settings: dict[str, Any] = {
            "queue.buffering.max.kbytes": job.buffer_bytes // 1024,
            "compression.type": job.codec,
            "max.in.flight.requests.per.connection": 1,
            "acks": "all",
            "linger.ms": LINGER_MS,
            "request.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
        }
        servers = {"bootstrap.servers": job.bootstrap_servers}
        self._producers = [Producer(servers | self.settings) for _ in range(job.producers)]
        self._tally, self._topic = tally, job.topic

    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send from one thread a producer, serving its reports now and then and whenever it is full."""
        producers, tally, topic = self._producers, self._tally, self._topic

        def send(index: int, value: bytes) -> bool:
            producer = producers[index]
            try:
                producer.produce(topic, value, on_delivery=reports[index])
            except BufferError:
                producer.poll(0.05)
                return False
            if tally.accepted[index] % ROUND == 0:
                producer.poll(0)
            return True

        def report_of(index: int) -> Callable[[Any, Any], None]:
            return lambda error, _: tally.resolve(index, error)

        reports = [report_of(index) for index in range(len(producers))]
        run_threads(
            Drive(send, lambda index: producers[index].flush(DELIVERY_TIMEOUT_MS / 1000)), tally, messages, stopping
        )


class KafkaPython:
    """kafka-python, which since 3.0 has no buffer_memory."""

    shared_bytes = 0
    planned_bytes = 0

    def __init__(self, job: Job, tally: Tally) -> None:
        from kafka import KafkaProducer

        self.settings: dict[str, Any] = {
            "buffer_memory": "none: removed in kafka-python 3.0",
            "compression_type": None if job.codec == "none" else job.codec,
            "max_in_flight_requests_per_connection": 1,
            "acks": "all",
            "linger_ms": LINGER_MS,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
        }
        given = {name: value for name, value in self.settings.items() if name != "buffer_memory"}
        self._producers = [
            KafkaProducer(bootstrap_servers=job.bootstrap_servers, **given) for _ in range(job.producers)
        ]
        self._tally, self._topic = tally, job.topic

    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send from one thread a producer."""
        tally, topic = self._tally, self._topic
        sends = [producer.send for producer in self._producers]

        def send(index: int, value: bytes) -> bool:
            future = sends[index](topic, value)
            future.add_callback(acked[index])
            future.add_errback(failed[index])
            return True

        def acked_of(index: int) -> Callable[[object], None]:
            return lambda _: tally.resolve(index, None)

        def failed_of(index: int) -> Callable[[object], None]:
            return lambda error: tally.resolve(index, error)

        acked = [acked_of(index) for index in range(len(sends))]
        failed = [failed_of(index) for index in range(len(sends))]
        run_threads(Drive(send, lambda index: self._producers[index].flush()), tally, messages, stopping)


class Aiokafka:
    """aiokafka: one event loop, one task a producer."""

    shared_bytes = 0
    planned_bytes = 0

    def __init__(self, job: Job, tally: Tally) -> None:
        import aiokafka

        self.settings: dict[str, Any] = {
            "max_batch_size": job.buffer_bytes // job.partitions,
            "compression_type": None if job.codec == "none" else job.codec,
            "acks": "all",
            "linger_ms": LINGER_MS,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        self._make: Callable[[], Any] = lambda: aiokafka.AIOKafkaProducer(
            bootstrap_servers=job.bootstrap_servers, **self.settings
        )
        self._tally, self._topic = tally, job.topic

    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send from one task a producer."""
        asyncio.run(self._all(messages, stopping))

    async def _all(self, messages: list[bytes], stopping: threading.Event) -> None:
        producers = [self._make() for _ in self._tally.accepted]
        for producer in producers:
            await producer.start()
        await asyncio.gather(*(self._one(index, p, messages, stopping) for index, p in enumerate(producers)))

    async def _one(self, index: int, producer: Any, messages: list[bytes], stopping: threading.Event) -> None:
        tally, topic = self._tally, self._topic
        at = index * len(messages) // len(tally.accepted)

        def report(future: asyncio.Future[Any]) -> None:
            tally.resolve(index, future.exception())

        try:
            while not stopping.is_set():
                future = await producer.send(topic, messages[at])
                future.add_done_callback(report)
                tally.accepted[index] += 1
                at = (at + 1) % len(messages)
                if tally.accepted[index] % ROUND == 0:
                    await asyncio.sleep(0)  # send() does not yield to the other tasks while there is room
        except Exception as error:  # noqa: BLE001 - whatever a client raises is a result
            tally.error = repr(error)
        await producer.stop()


CLIENTS: dict[str, Callable[[Job, Tally], Client]] = {
    "slabpress": Slabpress,
    "confluent-kafka": Confluent,
    "kafka-python": KafkaPython,
    "aiokafka": Aiokafka,
}
