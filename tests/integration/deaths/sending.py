"""Records sent all the time, and looks at what a producer's processes do with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Consumer, TopicPartition

from slabpress import Producer, SlabpressError
from slabpress.pipeline.supervisor import Supervisor
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import COMPRESSING, ORPHAN, PROCESS_RUNNING
from tests.integration.deaths.records import text_of, value_of
from tests.integration.pipeline.looks import WATCHDOG_S, until
from tests.support.kafka_install import wait_until

NETWORK_PROCESS: Final = "network process"


class Stream:
    """One sender's records, sent by the caller or by a thread.

    Args:
        producer: the producer; it has to take a record within the watchdog's time.
        topic: where to.
        partitions: it goes round so many.
        filling: what each record carries beside its numbers.
        text_bytes: or so much text, in each record another.
        name: the sender's.

    Attributes:
        sent: how many records were accepted.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        partitions: int = 1,
        *,
        filling: bytes = b"",
        text_bytes: int = 0,
        name: str = "a",
    ) -> None:
        self.producer = producer
        self.name = name
        self.sent = 0
        self._topic = topic
        self._partitions = partitions
        self._filling = filling
        self._text_bytes = text_bytes
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    @property
    def accepted(self) -> dict[str, int]:
        """What ``records.count`` asks for."""
        return {self.name: self.sent}

    def send(self, records: int) -> None:
        """Send so many records."""
        for _ in range(records):
            partition = self.sent % self._partitions
            filling = text_of(self.sent, self._text_bytes) if self._text_bytes else self._filling
            value = value_of(self.name, partition, self.sent, filling)
            self.producer.send(self._topic, value, partition=partition)
            self.sent += 1

    @contextmanager
    def running(self, pause_s: float = 0.0) -> Iterator[None]:
        """Send all the time while the block runs, a record each ``pause_s``; at its end everything is delivered."""
        with self._thread(pause_s):
            yield
        if self._failure is not None:
            raise self._failure
        self.producer.flush(WATCHDOG_S)

    @contextmanager
    def running_until(self, error: type[SlabpressError]) -> Iterator[None]:
        """Send all the time while the block runs, and from its end on until send() raises this error."""
        with self._thread(0.0):
            yield
            until(lambda: self._failure is not None, f"{error.__name__}")
        assert isinstance(self._failure, error)

    @contextmanager
    def _thread(self, pause_s: float) -> Iterator[None]:
        thread = threading.Thread(target=self._run, args=(pause_s,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(WATCHDOG_S)
        assert not thread.is_alive()

    def _run(self, pause_s: float) -> None:
        try:
            while not self._stopping.is_set():
                self.send(1)
                if pause_s:
                    self._stopping.wait(pause_s)
        except BaseException as failure:  # noqa: BLE001 - raised at the block's end
            self._failure = failure

    def goes_on(self, records: int = 50) -> None:
        """Wait until so many more records were delivered."""
        goal = self.producer.stats().records_delivered + records
        until(
            lambda: self.producer.stats().records_delivered >= goal or self._failure is not None,
            f"{records} records more to be delivered",
        )
        assert self._failure is None, self._failure


def supervisor_of(producer: Producer) -> Supervisor:
    """Who looks after a producer's children."""
    return producer._coordinator._supervisor


def children_of(producer: Producer) -> dict[str, int]:
    """Their process ids, by their names."""
    return dict(supervisor_of(producer).processes())


def slot_of(producer: Producer, child: str) -> int:
    """Its place in the control block."""
    return next(one.role.slot for one in supervisor_of(producer).children if one.role.name == child)


def works(producer: Producer, child: str) -> bool:
    """Whether it has started, and taken over what its predecessor left."""
    return producer._coordinator.control.state(slot_of(producer, child)) == PROCESS_RUNNING


def kill(producer: Producer, child: str, number: int) -> None:
    """Send a deadly signal to a child that works, and wait until another has its place."""
    # Three that die before they work would be the producer's end.
    until(lambda: works(producer, child), f"{child} to work")
    pid = children_of(producer)[child]
    os.kill(pid, number)
    until(lambda: children_of(producer).get(child, pid) != pid, f"another {child}")


class Compressing:
    """Which worker compresses what, of one producer."""

    def __init__(self, producer: Producer) -> None:
        self._states = producer._session.arena.batch_states
        self._descriptors = Descriptors(producer._session.arena)

    def batches(self) -> dict[str, int]:
        """By worker the batch that it is compressing."""
        held = {self._descriptors.worker(index): index for index in self._states.find_all(COMPRESSING)}
        return {
            f"worker {worker}": index
            for worker, index in held.items()
            if worker != ORPHAN and not self._descriptors.output(index).payload_bytes
        }

    def wait(self) -> tuple[str, int]:
        """Wait until a worker compresses a batch; its name, and how many have died of that batch before."""
        found: dict[str, int] = {}

        def look() -> bool:
            found.update(self.batches())
            return bool(found)

        wait_until(look, "a worker to compress a batch", WATCHDOG_S, every_s=0.0)
        worker, index = next(iter(found.items()))
        return worker, self._descriptors.deaths(index)


class LogEnd:
    """Where a partition's log ends, asked of the broker itself: records that it has appended, acknowledged or not."""

    def __init__(self, bootstrap_servers: str, topic: str, partition: int = 0) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "log-end", "log_level": 2})
        self._partition = TopicPartition(topic, partition)

    def __call__(self) -> int:
        marks = self._consumer.get_watermark_offsets(self._partition, timeout=WATCHDOG_S)
        assert marks is not None
        return int(marks[1])

    def __enter__(self) -> LogEnd:
        return self

    def __exit__(self, *exc: object) -> None:
        self._consumer.close()
