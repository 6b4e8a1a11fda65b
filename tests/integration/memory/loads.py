"""The loads that a plan has to stand: each fills every table, buffer and workspace that it can get at.

They run in a job (job.py). ``send()`` waits where there is no room, so all of them run at the arena's limit.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, Final

from slabpress import BufferFullError, Pipeline, Producer
from tests.integration.memory.job import WATCHDOG_S, Job, begin, until

HEADERS: Final = (("trace", b"0123456789abcdef"), ("n", b"1"), ("empty", None))


def _producer(job: Job, **settings: Any) -> Producer:
    return Producer(job.order["servers"], **(job.order["settings"] | settings))


def _end(job: Job, *producers: Producer, **facts: object) -> None:
    """Flush, and say what became of the records."""
    for producer in producers:
        producer.flush()
    stats = [producer.stats() for producer in producers]
    accepted, delivered = sum(one.records_accepted for one in stats), sum(one.records_delivered for one in stats)
    splits = [one.network["splits"] for one in stats]
    job.tell("finished", accepted=accepted, delivered=delivered, splits=splits, **facts)


def every_kind(job: Job) -> None:
    """Records of all kinds: text, noise, both; small with headers; full batches; one record a batch; the largest."""
    topic, values, order = job.order["topic"], job.values, job.order
    with _producer(job) as producer:
        job.started(producer.plan, producer)
        alone = producer.plan.batch_bytes * 2 // 3  # a second of them does not fit in the batch
        for _ in range(order["rounds"]):
            for column in (values.lines, values.noise, values.halves):
                for _ in range(order["columns"]):
                    producer.send_many(topic, column)
                    job.keep(len(column))
            for number, line in enumerate(values.lines):
                producer.send(topic, line[:9], key=line[9:19], headers=HEADERS, partition=number % 4)
            for large in (values.large_text, values.large_noise):
                for partition in range(order["large"]):
                    producer.send(topic, large, partition=partition)
                    producer.send(topic, memoryview(large)[:alone], partition=partition)
        _end(job, producer)


def many_partitions(job: Job) -> None:
    """A few records for each of very many topic-partitions, with all of them in use at a time."""
    topic, values = job.order["topic"], job.values.halves
    with _producer(job, linger_ms=200) as producer:
        job.started(producer.plan, producer)
        begin(producer, topic)
        for number in range(job.order["rounds"] * job.order["partitions"]):
            producer.send(topic, values[number % len(values)], partition=number % job.order["partitions"])
        _end(job, producer)


def wide_topics(job: Job) -> None:
    """Topics of very many partitions, whose metadata comes again and again; as many are used as there is room for."""
    order, value = job.order, job.values.lines[0]
    with _producer(job, linger_ms=20, metadata_max_age_ms=100) as producer:
        job.started(producer.plan, producer)
        used = 0
        for topic in order["topics"]:
            for partition in range(order["used"]):
                producer.send(topic, value, partition=partition)
                used += 1
        producer.flush()

        def refreshed() -> bool:
            for topic in order["topics"]:
                for partition in range(0, order["used"], 7):
                    producer.send(topic, value, partition=partition)
            producer.flush()
            return producer.stats().network["metadata_requests"] >= int(order["refreshes"])

        until(refreshed, f"{order['refreshes']} refreshes")
        _end(job, producer, used=used)


def _fill(producer: Producer, topic: str, values: list[bytes], partitions: int) -> int:
    for number in itertools.count():
        try:
            producer.send(topic, values[number % len(values)], partition=number % partitions)
        except BufferFullError:
            return number
    raise AssertionError


def stalled(job: Job) -> None:
    """The arena full of records that nobody acknowledges, while the program goes on trying to send."""
    topic, order = job.order["topic"], job.order
    values = getattr(job.values, order["values"])
    with _producer(job, max_block_ms=0, delivery_timeout_ms=WATCHDOG_S * 2000) as producer:
        job.started(producer.plan, producer)
        begin(producer, topic)
        job.pause("stop")
        _fill(producer, topic, values, order["partitions"])
        settled = [-1]

        def is_full() -> bool:
            """Whether nothing moves any more: what a worker compresses meanwhile makes room for more."""
            _fill(producer, topic, values, order["partitions"])
            accepted = producer.stats().records_accepted
            settled.append(accepted)
            return len(settled) > 50 and settled[-50] == accepted

        until(is_full, "a full arena")
        stats = producer.stats()
        tables = {"slabs": stats.slabs, "outputs": stats.output_buffers, "batches": stats.batches}
        job.pause("full", **{name: dict(table) for name, table in tables.items()})
        for _ in range(1000):
            with contextlib.suppress(BufferFullError):
                producer.send(topic, values[0], partition=0)
        _end(job, producer)


def split(job: Job) -> None:
    """Batches that the broker finds too large, of every codec: topics are new, so that nobody knows the limit yet."""
    with Pipeline(job.order["servers"], workers=2) as pipeline:
        producers = [
            pipeline.producer(**(job.order["settings"] | {"compression_type": codec})) for codec in job.order["codecs"]
        ]
        job.started(pipeline.plan, pipeline)
        for topic in job.order["topics"]:
            for producer in producers:
                producer.send_many(topic, job.values.halves)
        _end(job, *producers)


def many_producers(job: Job) -> None:
    """Twenty producers of 1 MiB that share a pipeline's processes, with every codec at several levels."""
    topic, values = job.order["topic"], job.values
    with Pipeline(job.order["servers"], workers=2, **job.order["settings"]) as pipeline:
        producers = [
            pipeline.producer(buffer_memory="1MiB", compression_type=codec, compression_level=level)
            for codec, level in job.order["codecs"]
        ]
        job.started(pipeline.plan, pipeline)
        for _ in range(job.order["rounds"]):
            for column in (values.lines, values.noise, values.halves):
                for producer in producers:
                    producer.send_many(topic, column[:500])
            for producer in producers:
                largest = producer.plan.largest_record_bytes - 100
                producer.send(topic, memoryview(values.large_text)[:largest])
                producer.send(topic, memoryview(values.large_noise)[:largest])
        _end(job, *producers)


LOADS: Final[dict[str, Callable[[Job], None]]] = {
    load.__name__: load for load in (every_kind, many_partitions, wide_topics, stalled, split, many_producers)
}
