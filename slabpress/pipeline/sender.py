"""The way of a record into an open batch; runs in the thread that calls send().

    known topic?  --no-->  wait for its metadata      (max_block_ms, then UnknownTopicError, BootstrapError)
    partition     given, or by key (murmur2), or the sticky one
    room in the partition's open batch?
       batch full --> seal it, open another
       no slab or descriptor free --> wait in line    (max_block_ms, then BufferFullError)

A record that is refused on this way has left nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from slabpress._native import BATCH_FULL, DeliveryHandle, FastLane, Mutex, partition_for_key
from slabpress.config import Config
from slabpress.errors import (
    BufferFullError,
    RecordTooLargeError,
    SlabpressError,
    TooManyTopicsError,
)
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.lookup import TopicLookup
from slabpress.pipeline.pressure import Pressure
from slabpress.pipeline.room import RoomLine, Turn
from slabpress.pipeline.topics import Topic, TopicRegistry
from slabpress.plan import MemoryPlan
from slabpress.records import Headers, Part
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.shm.states import BATCH_STATES, FREE, OUTPUT_STATES, SLAB_STATES

_T = TypeVar("_T")

# A wake-up that was lost with a dead process costs the first in line this long, not for ever (law 3).
_LOOK_AGAIN_S: Final = 1.0


class Sender:
    """Appends records to open batches, waiting for metadata and for room.

    Attributes:
        lock: the producer's lock: guards the accumulator, the topics and the line.
        fast_lane: the native way of records that need not wait.
        lookup: finds topics.
        refusal: makes the error that every call gets once the producer is closed, broken or forked; None
            while it is usable.
    """

    def __init__(
        self,
        config: Config,
        plan: MemoryPlan,
        arena: Arena,
        control: Control,
        lock: Mutex,
        accumulator: Accumulator,
        pressure: Pressure,
        topics: TopicRegistry,
    ) -> None:
        self.lock = lock
        self.line = RoomLine(lock, pressure.must_wait)
        self._turns = self.line.turns
        self.fast_lane = FastLane(lock, accumulator.writer, topics.known, accumulator.open_batches)
        self.refusal: Callable[[], SlabpressError] | None = None
        self._max_block_ms = config.max_block_ms
        self._buffer_memory = config.buffer_memory
        self._max_request_size = config.max_request_size
        self._plan = plan
        self._arena = arena
        self._accumulator = accumulator
        self._pressure = pressure
        self._writer = accumulator.writer
        self._topics = topics
        self.lookup = TopicLookup(config.max_block_ms, arena, control, lock, topics, self.check_usable)

    def refuse(self, refusal: Callable[[], SlabpressError]) -> None:
        """From now on every call gets this error. In a forked child it is called without the lock."""
        self.fast_lane.closed = True
        self.refusal = refusal

    def check_usable(self) -> None:
        """Raise if the producer was closed, broke, or belongs to another process."""
        if self.refusal is not None:
            raise self.refusal()

    def send(
        self,
        topic_name: str,
        value: Part,
        key: Part,
        headers: Headers | None,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> DeliveryHandle:
        """Append one record the long way, waiting where it must; see ``Producer.send``."""
        self.check_usable()  # before the lock as well: in a forked child it may be held for ever
        with self.lock:
            self.check_usable()
            self._count_line()  # if a signal handler raised where it should have been counted
            return self._send_waiting(topic_name, value, key, headers, partition, timestamp_ms)

    def _append(self, batch: Batch, key: Part, value: Part, headers: Headers | None, timestamp_ms: int | None) -> int:
        try:
            return self._writer.append(batch, key, value, headers, timestamp_ms)
        except OverflowError:
            raise self._too_large(batch.topic.name) from None

    def _send_waiting(
        self,
        topic_name: str,
        value: Part,
        key: Part,
        headers: Headers | None,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> DeliveryHandle:
        deadline = time.monotonic() + self._max_block_ms / 1000
        topic = self.lookup.await_topic(topic_name, deadline)
        if partition is not None:
            self.lookup.check_partition(topic, partition, deadline)
        elif key is not None:
            partition = partition_for_key(key, len(topic.open))

        def attempt() -> DeliveryHandle | None:
            return self.try_append(topic, partition, key, value, headers, timestamp_ms)

        return self.with_room(attempt, topic, deadline)

    def try_append(
        self,
        topic: Topic,
        partition: int | None,
        key: Part,
        value: Part,
        headers: Headers | None,
        timestamp_ms: int | None,
    ) -> DeliveryHandle | None:
        """Append without waiting; None while there is no room. ``partition`` None: the sticky one."""
        while True:
            batch = self.open_batch(topic, partition)
            if batch is None:
                return None
            try:
                size = self._append(batch, key, value, headers, timestamp_ms)
            except BaseException:
                self._accumulator.drop_if_empty(batch)
                raise
            if size > 0:
                handle = DeliveryHandle(batch, batch.records - 1)
                if batch.records == 1:
                    self.let_linger(batch)
                return handle
            if size == BATCH_FULL:
                self._accumulator.seal(batch)
                continue
            self._accumulator.drop_if_empty(batch)
            if partition is not None or not self.go_around(topic):
                return None

    def go_around(self, topic: Topic) -> bool:
        """Where the last record found its leader to have its share: keyless ones go to another's partition (KIP-794).

        Returns:
            Whether there is one.
        """
        held_back = self._writer.held_back
        return held_back >= 0 and self._topics.stick_around(topic, self._pressure.had_share)

    def let_linger(self, batch: Batch, *, may_seal: bool = True) -> None:
        """A batch has its first records: without a linger it is sealed, unless its topic has one on the way already.

        Args:
            batch: the batch; a bulk call may have filled and sealed it already.
            may_seal: False where it was, or the caller goes on with it.

        Sealed here, not by the coordinator's thread: that costs a wake-up, and a wait for the interpreter's lock, on
        the way of every record that comes alone, of which most go a shorter way still (native/open_batches.pxi). Of
        those that come faster than acknowledgements only the first goes like this; the rest gather until the
        coordinator comes by.

        Otherwise the coordinator's alarm is set for the oldest open batch's first record, if it would sleep past its
        linger time. Not when a batch is opened: one that finds no slab is dropped again, and whoever waits in line
        would be called, open one and ring for ever (95 % of a core while acknowledgements were stopped).

        It looks around within ``NUDGE_NS`` in any case, and keeps a timer then: whoever seals the batch, nobody else
        would make up for a ring that goes to a stopped process.
        """
        if may_seal and self._accumulator.lingers_not and not batch.topic.under_way:
            self._accumulator.seal(batch)
        self._accumulator.open_batches.expect_linger(time.monotonic_ns())

    def open_batch(self, topic: Topic, partition: int | None) -> Batch | None:
        """The partition's open batch, opened if need be; None while no descriptor is free.

        Args:
            topic: the topic.
            partition: None is the sticky one; where the partition table has no entry left for it, another.

        Raises:
            TooManyTopicsError: the partition table is full.
        """
        keyless = partition is None
        target = topic.sticky if partition is None else partition
        batch = topic.open[target]
        if batch is None:
            try:
                index = self._topics.partition_index(topic, target)
            except TooManyTopicsError:
                if not keyless or not self._topics.stick_to_indexed(topic):
                    raise
                return self.open_batch(topic, None)
            batch = self._accumulator.open_batch(topic, target, index, time.monotonic_ns())
        return batch

    def with_room(self, attempt: Callable[[], _T | None], topic: Topic, deadline: float) -> _T:
        """Call ``attempt`` until it gives something, waiting in line for room between the tries.

        Raises:
            BufferFullError: there was no room until the deadline.
        """
        turn: Turn | None = None
        try:
            while True:
                self._writer.reserve, self._writer.wanted = self.line.needed_before(turn), 0
                self._writer.held_back = -1
                result = attempt()
                if result is not None:
                    return result
                if turn is None:
                    # Ask to be woken, then look once more: what was freed in between rang for nobody.
                    turn = Turn(self.lock, self._writer.wanted, self._writer.held_back)
                    self.line.join(turn)
                    topic.pinned += 1
                    self.fast_lane.reserved += turn.need
                    self._arena.memory.store_u64(at.ROOM_WANTED_AT, self._pressure.slabs_worth_a_call)
                    self._arena.memory.add_u64(at.COORDINATOR_COUNTERS_AT + 8 * 3, 1)
                    self._arena.memory.fence()
                    continue
                # Its partition's batch may have been sealed meanwhile: the record now needs a slab more.
                if turn.wants(self._writer.wanted, self._writer.held_back):
                    self.line.call_first()  # it was called for room that it may not have
                self.fast_lane.reserved = self.line.needed_before(None)
                self._wait_in_line(turn, topic, deadline)
        finally:
            if turn is not None:
                topic.pinned -= 1
                self.line.leave(turn)
                self._count_line()

    def _count_line(self) -> None:
        """Tell the fast lane, and the workers, what is still waited for."""
        self.fast_lane.reserved = self.line.needed_before(None)
        if not self._turns and self.refusal is None:
            self._arena.memory.store_u64(at.ROOM_WANTED_AT, 0)

    def _wait_in_line(self, turn: Turn, topic: Topic, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            held_back = turn.held_back
            raise BufferFullError(
                self._describe_full(topic) if held_back < 0 else self._describe_share(topic, held_back)
            )
        if turn.held_back < 0:
            self._pressure.relieve()
        else:
            self._pressure.relieve_leader(turn.held_back)
        self.line.wait(turn, min(remaining, _LOOK_AGAIN_S))
        self.check_usable()

    def _describe_full(self, topic: Topic) -> str:
        arena = self._arena
        slabs = dict(zip(SLAB_STATES, arena.slab_states.tally(len(SLAB_STATES)), strict=True))
        outputs = dict(zip(OUTPUT_STATES, arena.output_states.tally(len(OUTPUT_STATES)), strict=True))
        if arena.batch_states.find(FREE) < 0:
            return (
                f"no room for a record to topic {topic.name!r} within max_block_ms={self._max_block_ms}: all "
                f"{arena.geometry.batch_count} batch descriptors are in use "
                f"({_figures(dict(zip(BATCH_STATES, arena.batch_states.tally(len(BATCH_STATES)), strict=True)))}): "
                "delivery callbacks are slower than deliveries if many are reporting; make them faster"
            )
        return (
            f"no room for a record to topic {topic.name!r} within max_block_ms={self._max_block_ms}: buffer_memory of "
            f"{self._buffer_memory} bytes holds {arena.geometry.slab_count} slabs ({_figures(slabs)}) and "
            f"{arena.geometry.output_count} output buffers ({_figures(outputs)}), {len(self._turns)} threads wait. "
            "The cluster takes records more slowly than they are sent "
            + (
                "(slabs ready and in flight): send less, wait longer, or raise buffer_memory"
                if arena.is_direct
                else "(output buffers in flight), or compression does (slabs sealed): send less, wait longer, or raise "
                "buffer_memory or workers"
            )
        )

    def _too_large(self, topic_name: str) -> RecordTooLargeError:
        size = self._writer.too_large_bytes
        if size > self._max_request_size:
            limit = f"max_request_size = {self._max_request_size} bytes: raise it (and the topic's max.message.bytes)"
        else:
            limit = f"the {self._plan.largest_record_bytes} bytes of slabs in buffer_memory: raise buffer_memory"
        return RecordTooLargeError(
            f"a record for topic {topic_name!r} takes {size} bytes encoded and uncompressed, more than {limit}"
        )

    def _describe_share(self, topic: Topic, partition_index: int) -> str:
        leader = self._topics.leader(partition_index)
        whose = "topic-partitions without a leader hold" if leader is None else f"broker {leader} leads hold"
        slabs = self._arena.geometry.slab_count
        return (
            f"no room for a record to topic {topic.name!r} within max_block_ms={self._max_block_ms}: batches that "
            f"{whose} their share of the {slabs} slabs in buffer_memory of {self._buffer_memory} bytes, "
            f"{self._arena.slabs.count_free()} of which are left to other brokers. It takes records more slowly than "
            "they are sent, or none: wait longer, raise buffer_memory, or look at that broker"
        )

    def too_large(self, topic: Topic) -> RecordTooLargeError:
        """The error for the record that the writer just refused."""
        return self._too_large(topic.name)


def _figures(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
