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

import struct
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from crc32c import crc32c

from slabpress._native import NONE
from slabpress.network.outcomes import Outcome
from slabpress.network.queues import Batch, PartitionQueue
from slabpress.network.sequences import UNIDENTIFIED, Sequences
from slabpress.results import DELIVERED
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Content, Descriptors, Output, Result
from slabpress.shm.layout import (
    BATCH_HEADER_BYTES,
    BROKERS_AT,
    CONNECTIONS_MOST_AT,
    NETWORK_COUNTERS,
    NETWORK_COUNTERS_AT,
)
from slabpress.shm.splits import Split, Splits
from slabpress.shm.states import (
    DONE,
    IN_FLIGHT,
    OUTPUT_FREE,
    OUTPUT_IN_FLIGHT,
    OUTPUT_READY,
    OVERSIZE,
    PARTIAL,
    READY,
    UNDER_WAY,
)
from slabpress.shm.topics import TopicTable

_COUNTER_AT: Final = {name: NETWORK_COUNTERS_AT + 8 * place for place, name in enumerate(NETWORK_COUNTERS)}

# The header of a version 2 record batch, in two pieces: the CRC-32C covers the second and the payload.
_HEADER_START: Final = struct.Struct(">qiibI")  # base offset, length, leader epoch, magic, CRC
_HEADER_REST: Final = struct.Struct(">hiqqqhii")  # the fields that make_bytes names
_CRC_FROM: Final = _HEADER_START.size
_MAGIC: Final = 2
# What brokers remember of a partition's batches (ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
_IDEMPOTENT_IN_FLIGHT: Final = 5
# The length field counts what follows it: all but the base offset and itself.
_BYTES_BEFORE_LENGTH_COUNTS: Final = 12


class _Held(NamedTuple):
    """What is known of a batch from when it is READY until it is DONE, or is to be split."""

    content: Content
    split: Split


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
        sequences: the sequences, for an idempotent producer.
        refused_id: what its batches get while the cluster gives it no producer id (``refusal``).
        retired: its producer was closed: nothing of it is sent any more, nobody waits for a result.
        queues: for each partition index its queue, once it had a batch.
        has_news: a batch has a result, or one of its pieces, that nobody was woken for yet.
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
        self.sequences = Sequences(arena)
        self.refused_id: Outcome | None = None
        self._refused_until_ns = 0
        self.queues: list[PartitionQueue | None] = [None] * arena.geometry.partition_count
        self._descriptors = Descriptors(arena)
        self._splits = Splits(arena)
        # In a fresh arena this is 0.
        self._cursor = max(0, arena.seal_tail - arena.geometry.seal_ring_entries)
        self._older: list[tuple[int, int]] = []

    @property
    def needs_workers(self) -> bool:
        """Whether what this process does may be what a worker waits for."""
        return not self.arena.is_direct or self._splits.any_ever()

    def take_over(self) -> None:
        """Make order after a predecessor that died: its batches on the wire are READY to be sent again."""
        states = self.arena.batch_states
        held: set[int] = set()
        for index in (index for state in UNDER_WAY for index in states.find_all(state)):
            sealed = self._descriptors.sealed(index)
            self.sequences.mend(index, sealed.partition_index, self._splits.get(index).first, sealed.records)
        for state in (READY, IN_FLIGHT):
            for index in states.find_all(state):
                first, split = self._descriptors.output(index).first_output, self._splits.get(index)
                if first == NONE:
                    self._end(index, split)
                    continue
                self.arena.outputs.mark(first, OUTPUT_READY)
                held.update(self.arena.outputs.chain(first))
                states.store(index, OVERSIZE if first == split.source else READY)
        # Only this role makes an output IN_FLIGHT, so what is IN_FLIGHT now was being freed.
        for output in self.arena.payload_states.find_all(OUTPUT_IN_FLIGHT):
            if output not in held:
                self.arena.payload_states.store(output, OUTPUT_FREE)
        # From the states and not from the ring: a batch that waits long, for its leader or for its pieces, may be older
        # than the ring, and of what a predecessor has followed any entry is overwritten by the next seal.
        self._cursor = self.arena.seal_tail
        number = self._descriptors.seal_number
        under_way = [index for index in range(states.count) if states.load(index) in UNDER_WAY]
        self._older = sorted((number(index), index) for index in under_way if number(index) <= self._cursor)

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
    def has_new_seals(self) -> bool:
        """Whether the coordinator sealed batches that were not followed yet."""
        return bool(self._older) or self._cursor != self.arena.seal_tail

    def follow(self) -> Iterator[Batch]:
        """The batches that were sealed since the last call, in seal order."""
        arena = self.arena
        tail = arena.seal_tail
        while self._older:
            number, index = self._older.pop(0)
            yield self._batch(index, number)
        while self._cursor < tail:
            index = arena.sealed_at(self._cursor)
            self._cursor += 1
            # The ring's first entry is seal number 1. One that does not match, or is DONE, is of a batch that
            # a predecessor ended.
            if self._descriptors.seal_number(index) == self._cursor and arena.batch_states.load(index) in UNDER_WAY:
                yield self._batch(index, self._cursor)

    def _batch(self, index: int, seal_number: int) -> Batch:
        sealed = self._descriptors.sealed(index)
        queue = self.queues[sealed.partition_index]
        if queue is None:
            topic_index, number = self.topics.partition(sealed.partition_index)
            # One name for all partitions of a topic: it may be 249 bytes long.
            queue = PartitionQueue(self, sys.intern(self.topics.name(topic_index)), number, sealed.partition_index)
            self.queues[sealed.partition_index] = queue
            if not self.topics.is_routed(queue.index):
                self.note_leader(queue)
        deadline_ns = sealed.created_ns + self.delivery_timeout_ms * 1_000_000
        return Batch(queue, index, seal_number, deadline_ns)

    def is_ready(self, index: int) -> bool:
        """Whether a worker has finished the batch."""
        return self.arena.batch_states.load(index) == READY

    def ready(self) -> list[int]:
        """Every READY batch."""
        return self.arena.batch_states.find_all(READY)

    def measure(self, batch: Batch) -> None:
        """Learn what a READY batch holds, and how many bytes it will be."""
        self._held(batch)

    def _held(self, batch: Batch) -> _Held:
        if isinstance(held := batch.held, _Held):
            return held
        held = batch.held = _Held(self._descriptors.content(batch.index), self._splits.get(batch.index))
        batch.records = held.split.piece_records if held.split.is_split else held.content.records
        batch.size = BATCH_HEADER_BYTES + held.content.output.payload_bytes
        return held

    def _forget(self, batch: Batch) -> None:
        """What it holds is sent, or will be another piece."""
        batch.held, batch.parts, batch.size = None, [], 0

    def codec(self, batch: Batch) -> int:
        """Kafka's id of a READY batch's codec."""
        return self._held(batch).content.output.codec

    def make_bytes(self, batch: Batch) -> None:
        """Write the header of a batch that is about to be sent; a retry sends the same bytes (law 8)."""
        if batch.parts:
            return
        content, split = self._held(batch)
        output = content.output
        identity = UNIDENTIFIED
        if self.idempotent:
            given = self.sequences.assign(batch.index, batch.queue.index, split.first, content.records)
            if given is None:
                raise ValueError("a batch of an idempotent producer is sent before there is a producer id")
            identity = given
        payload = self.arena.outputs.views(output.first_output, output.payload_bytes)
        header = self._descriptors.header(batch.index)
        _HEADER_REST.pack_into(
            header,
            _CRC_FROM,
            output.codec,  # attributes: the codec; no bit set for CreateTime, not transactional, no control
            batch.records - 1,  # last offset delta
            content.base_timestamp_ms,
            split.piece_max_timestamp_ms if split.is_split else content.max_timestamp_ms,
            *identity,  # producer id, producer epoch, base sequence
            batch.records,
        )
        checksum = crc32c(header[_CRC_FROM:])
        for view in payload:
            checksum = crc32c(view, checksum)
        _HEADER_START.pack_into(header, 0, 0, batch.size - _BYTES_BEFORE_LENGTH_COUNTS, -1, _MAGIC, checksum)
        batch.parts = [header, *payload]

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
        self.count("epochs_begun")

    def attempts(self, batch: Batch) -> int:
        """How often the batch was sent."""
        return self._descriptors.attempts(batch.index)

    def start(self, batch: Batch) -> None:
        """READY becomes IN_FLIGHT, before the first byte is sent."""
        index = batch.index
        self._descriptors.set_attempts(index, self._descriptors.attempts(index) + 1)
        self.arena.outputs.mark(self._held(batch).content.output.first_output, OUTPUT_IN_FLIGHT)
        self.arena.batch_states.store(index, IN_FLIGHT)

    def put_back(self, batch: Batch) -> None:
        """IN_FLIGHT becomes READY again: a response said so or the socket is closed (law 7)."""
        self.arena.outputs.mark(self._held(batch).content.output.first_output, OUTPUT_READY)
        self.arena.batch_states.store(batch.index, READY)
        self.count("retries")

    def split(self, batch: Batch) -> None:
        """IN_FLIGHT becomes OVERSIZE: what was sent, several records, is more than the broker takes at once."""
        index = batch.index
        (_, _, _, output), split = self._held(batch)
        self._forget(batch)
        self._descriptors.set_attempts(index, 0)  # its next piece was not sent yet
        if split.is_split:
            self._splits.halve(index, batch.records, output.payload_bytes)
            self._descriptors.set_output(index, output._replace(first_output=split.source))
            self.arena.outputs.mark(output.first_output, OUTPUT_FREE)
        else:
            self._splits.begin(index, output.first_output, output.payload_bytes, output.codec, batch.records)
            self.arena.outputs.mark(output.first_output, OUTPUT_READY)
        self.arena.batch_states.store(index, OVERSIZE)
        self.count("splits")

    def finish_sent(self, batch: Batch, outcome: Outcome) -> bool:
        """What was sent has its result; whether that is the batch's last."""
        content, split = self._held(batch)
        last = not split.is_split or split.first + batch.records >= content.records
        self._finish(batch, outcome, batch.records, last=last)
        return last

    def finish(self, batch: Batch, outcome: Outcome) -> None:
        """All records that have none get this result; READY or IN_FLIGHT becomes DONE."""
        content, split = self._held(batch)
        self._finish(batch, outcome, content.records - split.first, last=True)

    def _finish(self, batch: Batch, outcome: Outcome, records: int, *, last: bool) -> None:
        """Store a result in the order that the head of this module explains."""
        index, content, split = batch.index, *self._held(batch)
        output = content.output
        self._forget(batch)
        self._descriptors.set_result(
            index,
            Result(
                outcome.code,
                outcome.record_index,
                outcome.base_offset,
                outcome.append_time_ms,
                outcome.retriable,
                outcome.text,
            ),
        )
        self.arena.outputs.mark(output.first_output, OUTPUT_IN_FLIGHT)
        self._descriptors.set_output(index, Output(NONE, output.output_count, output.payload_bytes, output.codec))
        self.arena.outputs.mark(output.first_output, OUTPUT_FREE)
        if outcome.code == DELIVERED:
            self.count("records_delivered", records)
            self.count("batches_delivered")
            self.count("payload_bytes_delivered", output.payload_bytes)
        else:
            self.count("records_failed", records)
            self.count("batches_failed")
        if last and split.is_split:
            self._drop_source(index)
        self.arena.batch_states.store(index, DONE if last else PARTIAL)
        self.has_news = True

    def tell_of_results(self) -> bool:
        """Wake the callback thread if it sleeps for them; False where only the coordinator can be told."""
        self.has_news = False
        return self.arena.results_sleeper.wake()

    def _drop_source(self, index: int) -> None:
        source = self._splits.get(index).source
        if source != NONE:
            self.arena.outputs.mark(source, OUTPUT_IN_FLIGHT)
            self._splits.drop_source(index)
            self.arena.outputs.mark(source, OUTPUT_FREE)

    def _end(self, index: int, split: Split) -> None:
        """What a predecessor has left of ``_finish`` after the first output became NONE."""
        records = self._descriptors.sealed(index).records
        # All the rest may have had its result at once (``finish``): then the source was being freed.
        kept = split.is_split and self.arena.payload_states.load(split.source) == OUTPUT_READY
        if kept and split.first + split.piece_records < records:
            self.arena.batch_states.store(index, PARTIAL)
        else:
            self._drop_source(index)
            self.arena.batch_states.store(index, DONE)

    def note_connections(self, now_open: int) -> None:
        """Keep the most connections that were ever open at a time."""
        if now_open > self.arena.memory.load_u64(CONNECTIONS_MOST_AT):
            self.arena.memory.store_u64(CONNECTIONS_MOST_AT, now_open)

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to one of the network process's counters."""
        self.arena.memory.add_u64(_COUNTER_AT[counter], amount)
