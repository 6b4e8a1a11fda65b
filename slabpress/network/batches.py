"""One arena's batches as the network process sees them: following the seal ring, headers, states, results.

In a direct arena (no compression) a batch's outputs are its slabs, READY from the moment of its seal.

The order of the stores is what lets this process be killed at any instruction. A batch ends in these steps:
its result is written; its outputs are IN_FLIGHT and its descriptor's first output becomes NONE; the outputs
become FREE; its state becomes DONE. A successor that finds a READY or IN_FLIGHT batch without outputs knows
that its result is written and ends it, and frees IN_FLIGHT outputs that no batch holds.

A piece of a split batch ends alike, but for the state: PARTIAL, while there are records after it; and after the last
piece, before DONE, the source is freed by the same steps. A batch whose outputs are its source, or a piece that is too
large, becomes OVERSIZE: its first output is the source from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from crc32c import crc32c

from slabpress.network.counters import Counters
from slabpress.network.outcomes import Outcome
from slabpress.network.partition import Batch, PartitionQueue
from slabpress.network.sequences import UNIDENTIFIED, Sequences
from slabpress.network.succession import drop_source, make_order
from slabpress.results import DELIVERED
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.layout import BATCH_HEADER_BYTES, BROKERS_AT
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    DONE,
    OUTPUT_FREE,
    OUTPUT_READY,
    OVERSIZE,
    PARTIAL,
    READY,
    UNDER_WAY,
)
from slabpress.shm.topics import TopicTable

# For ``SendPoint.end``: the batch's state is stored by its caller.
_NOT_YET: Final = -1
# What brokers remember of a partition's batches (ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
_IDEMPOTENT_IN_FLIGHT: Final = 5


class ArenaBatches:
    """The batches of one arena.

    Args:
        number: the arena's number in this set of processes.
        arena: the arena.
        settings: its producer's settings: ``acks``, ``delivery_timeout_ms``, ``max_request_size``,
            ``enable_idempotence``.

    Attributes:
        acks: the producer's acks: -1, 0 or 1.
        idempotent: batches carry a producer id and sequences.
        in_flight_limit: batches of one topic-partition on the wire at a time. Brokers know the last 5 again; without
            sequences a second one could pass one that is tried again (librdkafka#1092).
        counters: what this process has done in the arena.
        sequences: the sequences, for an idempotent producer.
        refused_id: what its batches get while the cluster gives it no producer id (``refusal``).
        retired: its producer was closed: nothing of it is sent any more, nobody waits for a result.
        queues: for each partition index its queue, once it had a batch.
        has_news: a batch has a result, or one of its pieces, that nobody was woken for yet.
        inbox: what the other processes have done in the arena.
    """

    def __init__(self, number: int, arena: Arena, settings: dict[str, Any]) -> None:
        self.number = number
        self.arena = arena
        self.topics = TopicTable(arena)
        self.acks = int(settings["acks"])
        self.delivery_timeout_ms = int(settings["delivery_timeout_ms"])
        self.max_request_bytes = int(settings["max_request_size"])
        self.retired = False
        self.has_news = False
        self.idempotent = bool(settings["enable_idempotence"])
        self.in_flight_limit = _IDEMPOTENT_IN_FLIGHT if self.idempotent else 1
        self.counters = Counters(arena.memory)
        self.sequences = Sequences(arena)
        self.refused_id: Outcome | None = None
        self._refused_until_ns = 0
        self.queues: list[PartitionQueue | None] = [None] * arena.geometry.partition_count
        self._descriptors = Descriptors(arena)
        self._splits = Splits(arena)
        self._send_point = arena.send_point
        self._is_direct = arena.is_direct
        self.inbox = arena.inbox()
        # In a fresh arena this is 0.
        self.inbox.cursor = max(0, arena.seal_tail - arena.geometry.seal_ring_entries)
        self._older: list[tuple[int, int]] = []

    @property
    def needs_workers(self) -> bool:
        """Whether what this process does may be what a worker waits for."""
        return not self._is_direct or self._send_point.any_split()

    def take_over(self) -> None:
        """Make order after a predecessor that died: its batches on the wire are READY to be sent again."""
        make_order(self.arena, self._descriptors, self._splits, self.sequences)
        # From the states and not from the ring: a batch that waits long, for its leader or for its pieces, may be older
        # than the ring, and of what a predecessor has followed any entry is overwritten by the next seal.
        self.inbox.cursor = self.arena.seal_tail
        states, number = self.arena.batch_states, self._descriptors.seal_number
        under_way = [index for index in range(states.count) if states.load(index) in UNDER_WAY]
        self._older = sorted((number(index), index) for index in under_way if number(index) <= self.inbox.cursor)

    def retire(self) -> None:
        """Send nothing of it any more; what is on the wire is nobody's business now."""
        self.retired = True

    def refuse_id(self, outcome: Outcome, until_ns: int) -> None:
        """There is no producer id, and until then none is asked for: what may be sent gets this outcome."""
        self.refused_id, self._refused_until_ns = outcome, until_ns

    def refusal(self, now: int) -> Outcome | None:
        """What a batch that may be sent gets for want of a producer id; None: one is asked for, on its behalf."""
        if now >= self._refused_until_ns:
            self.refused_id = None
        return self.refused_id

    @property
    def has_arrivals(self) -> bool:
        """Whether anybody did anything here that was not looked at yet."""
        return self.inbox.has_news() or bool(self._older)

    def follow(self) -> Iterator[Batch]:
        """The batches that were sealed since the last call, in seal order."""
        while self._older:
            number, index = self._older.pop(0)
            sealed = self._descriptors.sealed(index)
            yield self._batch(index, number, sealed.partition_index, sealed.created_ns)
        inbox = self.inbox
        while (entry := inbox.next_sealed()) is not None:
            index, number, state, partition_index, created_ns = entry
            # The ring's first entry is seal number 1. One that does not match, or is DONE, is of a batch that
            # a predecessor ended.
            if number == inbox.cursor and state in UNDER_WAY:
                batch = self._batch(index, number, partition_index, created_ns)
                batch.ready = state == READY
                yield batch

    def _batch(self, index: int, seal_number: int, partition_index: int, created_ns: int) -> Batch:
        queue = self.queues[partition_index]
        if queue is None:
            topic_index, number = self.topics.partition(partition_index)
            # One name for all partitions of a topic: it may be 249 bytes long.
            queue = PartitionQueue(self, sys.intern(self.topics.name(topic_index)), number, partition_index)
            self.queues[partition_index] = queue
            if not self.topics.is_routed(queue.index):
                self.note_leader(queue)
        return Batch(queue, index, seal_number, created_ns + self.delivery_timeout_ms * 1_000_000)

    def is_ready(self, index: int) -> bool:
        """Whether a worker has finished the batch; if not, it will be news once one has."""
        if self.arena.batch_states.load(index) == READY:
            return True
        self.inbox.await_ready(index)
        return False

    def newly_ready(self) -> list[int]:
        """The batches that have become READY since ``is_ready`` said that they are not."""
        return self.inbox.newly_ready()

    def measure(self, batch: Batch) -> None:
        """Learn what a READY batch holds, and how many bytes it will be."""
        if batch.size:
            return
        batch.records, batch.first_output, batch.payload_bytes, batch.codec, split = self._send_point.measure(
            batch.index
        )
        batch.size = BATCH_HEADER_BYTES + batch.payload_bytes
        if split:
            batch.split = self._splits.get(batch.index)
            batch.records = batch.split.piece_records

    def _forget(self, batch: Batch) -> None:
        """What it holds is sent, or will be another piece."""
        batch.split, batch.parts, batch.size = None, [], 0

    def make_bytes(self, batch: Batch) -> None:
        """Write the header of a batch that is about to be sent; a retry sends the same bytes (law 8)."""
        if batch.parts:
            return
        if not batch.size:
            self.measure(batch)
        split = batch.split
        producer_id, epoch, sequence = UNIDENTIFIED
        if self.idempotent:
            records, first = (batch.records, 0) if split is None else (self._records(batch), split.first)
            given = self.sequences.assign(batch.index, batch.queue.index, first, records)
            if given is None:
                raise ValueError("a batch of an idempotent producer is sent before there is a producer id")
            producer_id, epoch, sequence = given
        newest = None if split is None else split.piece_max_timestamp_ms
        batch.parts = self._send_point.make(batch.index, batch.records, producer_id, epoch, sequence, crc32c, newest)

    def _records(self, batch: Batch) -> int:
        """How many records the whole batch has."""
        return self._descriptors.sealed(batch.index).records

    def note_leader(self, queue: PartitionQueue) -> None:
        """Tell the others whose share of the arena the queue's batches are."""
        self.topics.set_leader(queue.index, queue.leader)

    def note_brokers(self, count: int) -> None:
        """Tell the others how many brokers share the arena."""
        self.arena.memory.store_u32(BROKERS_AT, count)

    def begin_anew(self, queue: PartitionQueue) -> None:
        """A topic-partition whose sequences the broker no longer follows: its batches get new ones."""
        for batch in queue.waiting:
            batch.parts = []
        self.sequences.begin_anew(queue.index)
        self.counters.count("epochs_begun")

    def attempts(self, batch: Batch) -> int:
        """How often the batch was sent."""
        return self._descriptors.attempts(batch.index)

    def start(self, batch: Batch) -> None:
        """READY becomes IN_FLIGHT, before the first byte is sent."""
        self._send_point.start(batch.index)

    def put_back(self, batch: Batch) -> None:
        """IN_FLIGHT becomes READY again: a response said so or the socket is closed (law 7)."""
        self.measure(batch)
        self.arena.outputs.mark(batch.first_output, OUTPUT_READY)
        self.arena.batch_states.store(batch.index, READY)
        self.counters.count("retries")

    def split(self, batch: Batch) -> None:
        """IN_FLIGHT becomes OVERSIZE: what was sent, several records, is more than the broker takes at once."""
        self.measure(batch)
        index, split, payload_bytes = batch.index, batch.split, batch.payload_bytes
        self._forget(batch)
        self._descriptors.set_attempts(index, 0)  # its next piece was not sent yet
        if split is not None:
            self._splits.halve(index, batch.records, payload_bytes)
            output = self._descriptors.output(index)
            self._descriptors.set_output(index, output._replace(first_output=split.source))
            self.arena.outputs.mark(batch.first_output, OUTPUT_FREE)
        else:
            self._splits.begin(index, batch.first_output, payload_bytes, batch.codec, batch.records)
            self.arena.outputs.mark(batch.first_output, OUTPUT_READY)
        self.arena.batch_states.store(index, OVERSIZE)
        self.counters.count("splits")

    def finish_delivered(self, batch: Batch, base_offset: int, append_time_ms: int) -> bool:
        """What was sent is in the log; whether that is the batch's last. As most end so, nothing is made for it."""
        if batch.split is None:
            self._send_point.end(
                batch.index,
                batch.records,
                DELIVERED,
                -1,
                False,  # noqa: FBT003 - retriable; the native step has no names
                base_offset,
                append_time_ms,
                b"",
                DONE,
            )
            batch.parts = []  # it is nobody's any more
            self.has_news = True
            return True
        return self.finish_sent(batch, Outcome(DELIVERED, base_offset=base_offset, append_time_ms=append_time_ms))

    def finish_sent(self, batch: Batch, outcome: Outcome) -> bool:
        """What was sent has its result; whether that is the batch's last."""
        self.measure(batch)
        split = batch.split
        last = split is None or split.first + batch.records >= self._records(batch)
        self._finish(batch, outcome, batch.records, last=last)
        return last

    def finish(self, batch: Batch, outcome: Outcome) -> None:
        """All records that have none get this result; READY or IN_FLIGHT becomes DONE."""
        self.measure(batch)
        records = batch.records if batch.split is None else self._records(batch) - batch.split.first
        self._finish(batch, outcome, records, last=True)

    def _finish(self, batch: Batch, outcome: Outcome, records: int, *, last: bool) -> None:
        """Store a result in the order that the head of this module explains."""
        index, drop_source = batch.index, last and batch.split is not None
        self._forget(batch)
        state = DONE if last else PARTIAL
        self._send_point.end(
            index,
            records,
            outcome.code,
            outcome.record_index,
            outcome.retriable,
            outcome.base_offset,
            outcome.append_time_ms,
            outcome.text.encode(),
            _NOT_YET if drop_source else state,
        )
        if drop_source:
            self._drop_source(index)
            self.arena.batch_states.store(index, state)
        self.has_news = True

    def tell_of_results(self) -> bool:
        """Wake the callback thread if it sleeps for them; False where only the coordinator can be told."""
        self.has_news = False
        return self.arena.results_sleeper.wake()

    def _drop_source(self, index: int) -> None:
        drop_source(self.arena, self._splits, index)
