"""Loads that go round and round: after each round everything is as it was before, and so must the memory be.

They run in a job (job.py), which stops in every round until it is told to go on or to end.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from slabpress import BufferFullError, DeliveryError, DeliveryHandle, Producer, UnknownTopicError
from tests.integration.memory.job import WATCHDOG_S, Job, begin, until


@contextlib.contextmanager
def _producer(job: Job, **settings: Any) -> Iterator[Producer]:
    with Producer(job.order["servers"], **(job.order["settings"] | settings)) as producer:
        job.started(producer.plan, producer)
        yield producer
        with contextlib.suppress(DeliveryError):  # failures were expected, and are counted
            producer.flush()


def _round_ended(job: Job, producer: Producer) -> bool:
    """Stop with nothing under way; whether there is to be another round."""
    with contextlib.suppress(DeliveryError):
        producer.flush()
    stats = producer.stats()
    facts = {"accepted": stats.records_accepted, "delivered": stats.records_delivered, "failed": stats.records_failed}
    measured = {figure.name: figure.measured_bytes for figure in stats.memory}
    return job.pause("round", network=dict(stats.network), measured=measured, **facts)


def records(job: Job) -> None:
    """Records whose handles nobody keeps, to be delivered or refused."""
    topic, values, partitions = job.order["topic"], job.values.lines, job.order["partitions"]
    with _producer(job, linger_ms=20) as producer:
        while _round_ended(job, producer):
            for number in range(job.order["records"]):
                producer.send(topic, values[number % len(values)], partition=number % partitions)
            job.keep(job.order["records"])


def slow_callbacks(job: Job) -> None:
    """A callback that does not return: no descriptor is free, send() is refused, and nothing is queued anywhere."""
    topic, value = job.order["topic"], job.values.lines[0]
    gate, calls = threading.Event(), 0
    gate.set()

    def callback(handle: DeliveryHandle) -> None:
        nonlocal calls
        gate.wait(WATCHDOG_S)
        calls += 1

    def refused(producer: Producer) -> int:
        """Send until send() is refused; how many records went before."""
        for sent in itertools.count():
            try:
                producer.send(topic, value)
            except BufferFullError:
                return sent
        raise AssertionError

    with _producer(job, on_delivery=callback, linger_ms=0, batch_size=1, max_block_ms=0) as producer:
        begin(producer, topic)
        going = True
        while going:
            gate.clear()
            until(lambda: not refused(producer) and not producer.stats().batches["free"], "no free descriptor")
            for _ in range(job.order["refusals"]):
                assert refused(producer) == 0
            stats = producer.stats()
            going = job.pause("round", batches=dict(stats.batches), accepted=stats.records_accepted)
            gate.set()
            producer.flush()
            accepted = producer.stats().records_accepted
            assert calls == accepted, f"{calls} calls for {accepted} records"


def topics(job: Job) -> None:
    """Topics that are asked for before there are any, created, deleted while they are sent to, and created again."""
    value, names = job.values.lines[0], [f"topic-{number}" for number in range(job.order["topics"])]
    never = itertools.count()

    def is_sent(producer: Producer, name: str) -> bool:
        with contextlib.suppress(UnknownTopicError):
            producer.send(name, value)
            return True
        return False

    def is_known(producer: Producer, name: str) -> Callable[[], bool]:
        return lambda: is_sent(producer, name)

    with _producer(job, linger_ms=0, max_block_ms=1) as producer:
        while True:
            for _ in range(job.order["never"]):
                assert not is_sent(producer, f"never-{next(never)}")
            for name in names:
                is_sent(producer, name)  # unknown in the first round, later a topic that was deleted
            with contextlib.suppress(DeliveryError):
                producer.flush()
            job.pause("create")
            for name in names:
                until(is_known(producer, name), f"{name} to be known")
            if not _round_ended(job, producer):
                break
            job.pause("delete")


def restarts(job: Job) -> None:
    """Records that are on their way when the broker's connections break."""
    with _producer(job, linger_ms=0) as producer:
        while _round_ended(job, producer):
            for number in range(40):
                producer.send(job.order["topic"], job.values.lines[number], partition=number % 4)
                if number == 20:
                    job.pause("break")


def refreshes(job: Job) -> None:
    """Metadata of very many partitions, again and again; a record now and then."""
    with _producer(job, metadata_max_age_ms=100, linger_ms=0) as producer:
        for wanted in itertools.count(job.order["refreshes"], job.order["refreshes"]):
            for partition in range(0, job.order["partitions"], 1000):
                producer.send(job.order["topic"], job.values.lines[0], partition=partition)
            until(lambda wanted=wanted: _refreshes(producer) >= wanted, f"{wanted} refreshes")  # type: ignore[misc]
            if not _round_ended(job, producer):
                break


def _refreshes(producer: Producer) -> int:
    return producer.stats().network["metadata_requests"]


ROUNDS: Final[dict[str, Callable[[Job], None]]] = {
    load.__name__: load for load in (records, slow_callbacks, topics, restarts, refreshes)
}
