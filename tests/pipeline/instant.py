"""An instant pipeline: one thread in place of workers, network process and brokers.

It takes sealed batches straight to DONE through the arena's own tables, so that all of the coordinator's logic is
tested without a process or a socket. ``Rig`` is a whole producer on it; ``Parts`` is the coordinator's parts
without any thread, for tests that make every step themselves.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from slabpress._native import DeliveryHandle, Mutex
from slabpress.config import Config
from slabpress.errors import SlabpressError
from slabpress.footprints import process_lines
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.coordinator import Coordinator
from slabpress.pipeline.many import send_many
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.pipeline.pressure import Pressure
from slabpress.pipeline.sender import Sender
from slabpress.pipeline.session import Session
from slabpress.pipeline.topics import Topic, TopicRegistry
from slabpress.pipeline.watch import DoneCallback, Watch
from slabpress.plan import plan_memory
from slabpress.producer import Producer
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.shm.descriptors import Descriptors, Result
from slabpress.shm.states import DONE, IN_FLIGHT, OUTPUT_FREE, OUTPUT_IN_FLIGHT, READY
from slabpress.shm.topics import TopicTable
from tests.shm.kit import publish_raw, take
from tests.support.reference_batch import Record, decode_records

WATCHDOG_S: Final = 60.0
SMALL: Final[dict[str, Any]] = {
    "buffer_memory": 64 * 1024,
    "slab_size": 1024,
    "batch_size": 4096,
    "max_topic_partitions": 16,
    "workers": 1,
    "linger_ms": 0,
}


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state that another thread is bringing about."""
    pause, deadline = threading.Event(), time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline, "the state was never reached"
        pause.wait(0.001)


class DeliveredBatch(NamedTuple):
    """A batch as the instant pipeline got it."""

    topic: str
    partition: int
    base_offset: int
    records: list[Record]


Fate = Callable[[DeliveredBatch], Result]


def delivered(batch: DeliveredBatch) -> Result:
    """The fate of every batch unless a test wants another."""
    return Result(0, -1, batch.base_offset, -1, retriable=False, text="")


def refused(batch: DeliveredBatch) -> Result:
    """A broker that takes nothing."""
    return Result(87, 0, -1, -1, retriable=False, text="INVALID_RECORD: no such thing")


class InstantPipeline:
    """Workers, network process and broker of one arena, without a thread of its own.

    Attributes:
        topics: partitions of each topic that exists, or the negated error code of one that does not.
        fate: decides each batch's result.
        batches: what was delivered, in order.
        offsets: the next offset of each topic-partition.
    """

    def __init__(self, arena: Arena, control: Control, topics: dict[str, int]) -> None:
        self.arena = arena
        self.control = control
        self.topics = topics
        self.fate: Fate = delivered
        self.batches: list[DeliveredBatch] = []
        self.offsets: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._table = TopicTable(arena)
        self._descriptors = Descriptors(arena)
        self._admission = Admission(arena, 0)
        self._wanted_version = 0

    def answer_topics(self) -> None:
        """Answer for every topic that is wanted, if there was a new request."""
        version = self._table.wanted_version()
        if version == self._wanted_version:
            return
        self._wanted_version = version
        for name, index in self._table.wanted().items():
            partitions = self.topics.get(name, -3)
            self._table.set_answer(index, partitions if partitions > 0 else None, max(0, -partitions))
        self.control.wake(COORDINATOR)

    def deliver_one(self) -> DeliveredBatch | None:
        """Take the next sealed batch to DONE; None if there is none."""
        index = self._next_ready() if self.arena.is_direct else take(self._admission)
        if index is None:
            return None
        arena, descriptors = self.arena, self._descriptors
        if not arena.is_direct:
            publish_raw(arena, index)
        sealed, output = descriptors.sealed(index), descriptors.output(index)
        arena.batch_states.store(index, IN_FLIGHT)
        arena.outputs.mark(output.first_output, OUTPUT_IN_FLIGHT)
        topic_index, partition = self._table.partition(sealed.partition_index)
        place = self._table.name(topic_index), partition
        payload = b"".join(arena.outputs.views(output.first_output, output.payload_bytes))
        records = decode_records(payload, sealed.records, sealed.base_timestamp_ms)
        batch = DeliveredBatch(*place, self.offsets[place], records)
        result = self.fate(batch)
        if result.code == 0:
            self.offsets[place] += len(records)
            self.batches.append(batch)
        descriptors.set_result(index, result)
        arena.outputs.mark(output.first_output, OUTPUT_FREE)
        arena.batch_states.store(index, DONE)
        self.tell_of_results()
        return batch

    def tell_of_results(self) -> None:
        """Wake who takes them in, as the network process does."""
        if not self.arena.results_sleeper.wake():
            self.control.wake(COORDINATOR)

    def _next_ready(self) -> int | None:
        """In a direct arena: the batch that was sealed first."""
        return min(self.arena.batch_states.find_all(READY), key=self._descriptors.seal_number, default=None)

    def values(self, topic: str, partition: int) -> list[bytes | None]:
        """The values that were delivered to a topic-partition, in order."""
        return [
            record.value
            for batch in self.batches
            if (batch.topic, batch.partition) == (topic, partition)
            for record in batch.records
        ]


class InstantThread:
    """Runs an instant pipeline until it is stopped; ``hold`` is an outage."""

    def __init__(self, pipeline: InstantPipeline) -> None:
        self.pipeline = pipeline
        self.failure: BaseException | None = None
        self._running = True
        self._held = False
        self._at_rest = threading.Event()
        self._thread = threading.Thread(target=self._run, name="instant pipeline", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Deliver nothing until ``resume``; metadata is still answered."""
        self._at_rest.clear()
        self._held = True
        self._ring()
        assert self._at_rest.wait(WATCHDOG_S)

    def resume(self) -> None:
        """Deliver again."""
        self._held = False
        self._ring()

    def stop(self) -> None:
        """End the thread; what went wrong in it is raised here."""
        self._running = False
        self._ring()
        self._thread.join(WATCHDOG_S)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def _ring(self) -> None:
        self.pipeline.control.bells[NETWORK].ring()

    def _run(self) -> None:
        try:
            while self._running:
                self._turn()
        except BaseException as failure:  # noqa: BLE001 - raised by stop
            self.failure = failure

    def _must_pause(self) -> bool:
        return self._held or not self._running

    def _turn(self) -> None:
        pipeline, control = self.pipeline, self.pipeline.control
        control.lie_down(NETWORK)
        control.lie_down(FIRST_WORKER)
        pipeline.answer_topics()
        worked = False
        if self._held:
            self._at_rest.set()
        else:
            while pipeline.deliver_one() is not None:
                worked = True
                if self._must_pause():
                    break
        if not worked and self._running:
            control.bells[NETWORK].wait(1.0, [control.bells[FIRST_WORKER].fileno()])
            control.bells[FIRST_WORKER].drain()


class InstantProducer(Producer):
    """A producer without children: the public face over the instant pipeline."""

    @staticmethod
    def _processes(config: Config) -> Coordinator:
        return Coordinator([], config.workers, process_lines(config, config.workers))


class Rig:
    """A producer whose children are one thread of this process.

    Attributes:
        producer, coordinator, session, sender, pipeline, thread: what tests look at.
    """

    def __init__(
        self, topics: dict[str, int] | None = None, on_delivery: DoneCallback | None = None, **settings: Any
    ) -> None:
        self.producer = InstantProducer("nowhere:9092", on_delivery=on_delivery, **(SMALL | settings))
        self.coordinator: Coordinator = self.producer._coordinator
        self.session: Session = self.producer._session
        self.sender = self.session.sender
        self.send = self.producer.send
        self.send_many = self.producer.send_many
        self.pipeline = InstantPipeline(
            self.session.arena, self.coordinator.control, {"t": 3} if topics is None else topics
        )
        self.thread = InstantThread(self.pipeline)
        self._closed = False

    def flush(self) -> None:
        """``Producer.flush``, with a watchdog."""
        self.producer.flush(WATCHDOG_S)

    def close(self, timeout: float = 0.0) -> None:
        """End the thread, and then the producer as ``Producer.close`` does."""
        if not self._closed:
            self._closed = True
            try:
                self.thread.stop()
            finally:
                self.producer.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(SlabpressError):  # the test has looked at what it wanted to
            self.close()

    def pending(self) -> int:
        """Records without a result."""
        with self.session.lock:
            batches = self.session.accumulator.unfinished()
        return sum(batch.records for batch in batches if batch.outcome is None)

    def check_all_free(self) -> None:
        """Law 2, at rest: everything is free again."""
        arena = self.session.arena
        assert arena.batch_states.tally(1) == [arena.geometry.batch_count]
        assert arena.slabs.count_free() == arena.geometry.slab_count
        assert arena.outputs.count_free() == arena.geometry.output_count


class Parts:
    """The coordinator's parts, without any thread: every step is the test's own."""

    def __init__(self, **settings: Any) -> None:
        self.config = Config.of("nowhere:9092", **(SMALL | {"max_block_ms": 0} | settings))
        self.plan = plan_memory(self.config)
        self.arena = Arena.create(self.plan.geometry)
        self.control = Control.create(1)
        self.watch = Watch()
        self.lock = Mutex()
        self.table = TopicTable(self.arena)
        self.registry = TopicRegistry(self.table, random.Random(1))
        self.accumulator = Accumulator(
            self.arena,
            self.plan,
            self.config.linger_ms * 1_000_000,
            self.control,
            self.watch,
            random.Random(2),
        )
        self.pressure = Pressure(self.arena, self.accumulator)
        self.sender = Sender(
            self.config,
            self.plan,
            self.arena,
            self.control,
            self.lock,
            self.accumulator,
            self.pressure,
            self.registry,
        )
        self.pipeline = InstantPipeline(self.arena, self.control, {})

    def topic(self, name: str, partitions: int) -> Topic:
        """A topic that is known."""
        self.registry.want(name)
        self.table.set_answer(self.table.wanted()[name], partitions, 0)
        self.registry.refresh()
        return self.registry.known[name]

    def send(self, value: Any, topic: str = "t", **parts: Any) -> DeliveryHandle:
        """``Producer.send``, without a callback."""
        key, headers, stamp = parts.get("key"), parts.get("headers"), parts.get("timestamp_ms")
        partition = parts.get("partition")
        handle: DeliveryHandle | None
        handle = self.sender.fast_lane.append(topic, value, key, headers, partition, stamp)
        return handle or self.sender.send(topic, value, key, headers, partition, stamp)

    def send_many(self, values: Any, topic: str = "t", partition: int | None = None, **columns: Any) -> ManyDelivery:
        """``Producer.send_many``."""
        parts = values, columns.get("keys"), columns.get("headers"), columns.get("timestamps_ms")
        return send_many(self.sender, self.accumulator, topic, parts, partition, self.config.max_block_ms)

    def sealed(self) -> list[int]:
        """The descriptors that were sealed, in order."""
        return [self.arena.sealed_at(number) for number in range(self.arena.seal_tail)]


@contextlib.contextmanager
def parts(**settings: Any) -> Iterator[Parts]:
    """Parts that are closed at the end."""
    made = Parts(**settings)
    try:
        yield made
    finally:
        made.arena.close()
        made.control.close()


def open_with_a_record(rig: Parts, topic: Topic, partition: int, now_ns: int = 0, size: int = 1) -> Batch:
    """Open a batch with one record of about ``size`` bytes."""
    index = rig.registry.partition_index(topic, partition)
    batch = rig.accumulator.open_batch(topic, partition, index, now_ns)
    assert batch is not None
    assert rig.accumulator.writer.append(batch, None, b"x" * size, None, 0) > 0
    return batch


def image(rig: Parts) -> bytes:
    """What the arena holds, but for when batches were opened."""
    held = bytearray(rig.arena.view)
    for descriptor in range(rig.arena.geometry.batch_count):
        start = rig.arena.layout.descriptors + descriptor * at.DESCRIPTOR_BYTES + at.CREATED_AT
        held[start : start + 8] = bytes(8)
    return bytes(held)
