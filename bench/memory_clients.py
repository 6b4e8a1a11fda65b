"""The other Python clients of the memory experiment, each with the nearest that it has to a memory setting.

Settings that are the same for all: acks=all, one request in flight, linger 5 ms, and timeouts that are longer than
the stall; anything else is the client's default. The clients are imported here only when they are needed, so that
their code counts as theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from bench.memory_messages import Job, first_message, stamped
from bench.memory_slabpress import LINGER_MS, Slabpress
from bench.memory_tally import Client, Drive, Tally, run_threads

SOCKET_TIMEOUT_MOST_MS = 300_000  # librdkafka takes no more
ROUND = 64

# Why a side's settings are the nearest that it has to a limit on memory; the Java sides are in memory_java.py.
WHY = {
    "slabpress": "buffer_memory is all that a producer holds: tables, records, compressed and unacknowledged batches; "
    "the processes that all producers share come on top and are in the plan",
    "confluent-kafka": "queue.buffering.max.kbytes is librdkafka's limit on what waits or is unacknowledged; it counts "
    "values, not what it keeps beside them; produce() refuses and is tried again after poll()",
    "kafka-python": "buffer_memory was removed in kafka-python 3.0 and nothing took its place: send() never waits for "
    "room",
    "aiokafka": "there is no buffer_memory, but send() waits while its partition's open batch is full: max_batch_size "
    "is buffer_memory / partitions; it sends one request at a time to a broker by itself",
}


class Confluent(Client):
    """confluent-kafka (librdkafka)."""

    def __init__(self, job: Job, tally: Tally) -> None:
        from confluent_kafka import Producer

        self.settings: dict[str, Any] = {
            "queue.buffering.max.kbytes": job.buffer_bytes // 1024,
            "compression.type": job.codec,
            "max.in.flight.requests.per.connection": 1,
            "acks": "all",
            "linger.ms": LINGER_MS,
            "request.timeout.ms": job.patience_ms,
            "socket.timeout.ms": min(SOCKET_TIMEOUT_MOST_MS, job.patience_ms),
            "message.timeout.ms": 2 * job.patience_ms,
        }
        servers = {"bootstrap.servers": job.bootstrap_servers}
        self._producers = [Producer(servers | self.settings) for _ in range(job.producers)]
        self._tally, self._topic = tally, job.topic
        self._flush_s = 2 * job.patience_ms / 1000

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
        run_threads(Drive(send, lambda index: producers[index].flush(self._flush_s)), tally, messages, stopping)


class KafkaPython(Client):
    """kafka-python, which since 3.0 has no buffer_memory."""

    def __init__(self, job: Job, tally: Tally) -> None:
        from kafka import KafkaProducer

        self.settings: dict[str, Any] = {
            "compression_type": None if job.codec == "none" else job.codec,
            "max_in_flight_requests_per_connection": 1,
            "acks": "all",
            "linger_ms": LINGER_MS,
            "request_timeout_ms": job.patience_ms,
            "delivery_timeout_ms": 2 * job.patience_ms,
            "max_block_ms": 2 * job.patience_ms,
        }
        self._producers = [
            KafkaProducer(bootstrap_servers=job.bootstrap_servers, **self.settings) for _ in range(job.producers)
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


class Aiokafka(Client):
    """aiokafka: one event loop, one task a producer."""

    def __init__(self, job: Job, tally: Tally) -> None:
        import aiokafka

        self.settings: dict[str, Any] = {
            "max_batch_size": job.buffer_bytes // job.partitions,
            "compression_type": None if job.codec == "none" else job.codec,
            "acks": "all",
            "linger_ms": LINGER_MS,
            "request_timeout_ms": 2 * job.patience_ms,  # also how long a batch may wait to be sent
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
        at = first_message(index, len(tally.accepted))

        def report(future: asyncio.Future[Any]) -> None:
            tally.resolve(index, future.exception())

        try:
            while not stopping.is_set():
                future = await producer.send(topic, stamped(index, tally.accepted[index], messages[at]))
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
