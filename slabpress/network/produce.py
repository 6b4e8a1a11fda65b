"""Produce requests: which batches go into one, and what its response (or its loss) does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

from slabpress.network import outcomes
from slabpress.network.backoff import Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.connection import Connection, InFlight
from slabpress.network.messages import (
    FIRST_PRODUCE_WITH_ZSTD,
    PRODUCE,
    decode_produce,
    error_name,
)
from slabpress.network.metadata import Cluster
from slabpress.network.outcomes import Outcome
from slabpress.network.produce_codec import FIRST_WITH_TOPIC_IDS, encode_produce
from slabpress.network.queues import Batch, PartitionQueue, Queues
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import ProduceAnswer, ProducePartition, ProduceResult, ProduceTopic, RecordBytes, WireError
from slabpress.results import DELIVERED

_ZSTD: Final = 4


class ProduceContext(NamedTuple):
    """What a Produce request in flight holds: its batches, and the names behind the topic ids it used.

    The ids are those of the request: metadata may know another one by the time of the response (KAFKA-19397).
    """

    batches: dict[tuple[str, int], Batch]
    names: dict[UUID, str]


class Applied(NamedTuple):
    """What a Produce response asks of its caller."""

    throttle_ms: int
    metadata_is_stale: bool
    leaders_changed: bool


class Producing:
    """Builds Produce requests and applies their responses.

    Args:
        settings: the process's settings.
        arenas: the arenas, by their number.
        queues: the order of sending.
        cluster: leaders and topic ids.
        backoff: between tries of one batch.
        why_waiting: why a queue's head is not sent, in words for the user.

    Attributes:
        finished: batches that became DONE, PARTIAL or OVERSIZE since somebody set it to 0: processes are to be woken.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        arenas: Mapping[int, ArenaBatches],
        queues: Queues,
        cluster: Cluster,
        backoff: Backoff,
        why_waiting: Callable[[PartitionQueue], str],
    ) -> None:
        self._settings = settings
        self._arenas = arenas
        self._queues = queues
        self._cluster = cluster
        self._backoff = backoff
        self._why_waiting = why_waiting
        self.finished = 0

    def send(self, node: int, connection: Connection, now: int) -> bool:
        """Queue one Produce request to a broker on its connection; False if there is nothing for it any more."""
        version = connection.versions.get(PRODUCE)
        finished = self.finished
        chosen = self._choose(node, version, now)
        if not chosen or version is None:
            return self.finished > finished  # what failed has others behind it
        arena = self._arena(chosen[0])
        for batch in chosen:
            self._arena(batch).make_bytes(batch)
        topics = self._group(chosen)
        if version >= FIRST_WITH_TOPIC_IDS and any(topic.topic_id is None for topic in topics):
            # Azure Event Hubs offers v13 and knows no ids (franz-go#1312).
            version = FIRST_WITH_TOPIC_IDS - 1
        correlation_id = connection.next_id(unanswered=arena.acks == 0)
        request = encode_produce(
            version,
            correlation_id,
            connection.client_id,
            arena.acks,
            self._settings.request_timeout_ms,
            topics,
        )
        for batch in chosen:
            self._arena(batch).start(batch)
            self._queues.take(batch, now)
        context = ProduceContext(
            {(batch.queue.topic, batch.queue.number): batch for batch in chosen},
            {topic.topic_id: topic.name for topic in topics if topic.topic_id is not None},
        )
        connection.send(request, correlation_id, PRODUCE, version, context, now)
        arena.count("requests")
        arena.count("request_bytes", request.size)
        return True

    def _arena(self, batch: Batch) -> ArenaBatches:
        return self._arenas[batch.queue.source.number]

    def _choose(self, node: int, version: int | None, now: int) -> list[Batch]:
        """The heads that go into one request; those that can never be sent to this broker are failed."""
        chosen: list[Batch] = []
        impossible: list[tuple[Batch, Outcome]] = []
        partitions: set[tuple[str, int]] = set()
        room = 0
        for batch in self._queues.heads(node):
            if version is None:
                impossible.append((batch, outcomes.no_common_version(node)))
                continue
            arena = self._arena(batch)
            if arena.idempotent and arena.sequences.producer_id is None:
                refusal = arena.refusal(now)
                if refusal is not None:
                    impossible.append((batch, refusal))
                continue  # it is being asked for
            arena.measure(batch)
            if version < FIRST_PRODUCE_WITH_ZSTD and arena.codec(batch) == _ZSTD:
                impossible.append((batch, outcomes.unsupported_zstd(version)))
                continue
            # A request has one acks and one batch of a topic-partition, whatever arenas they come from.
            key = (batch.queue.topic, batch.queue.number)
            if key in partitions or (chosen and arena.acks != self._arena(chosen[0]).acks):
                continue
            if not chosen:
                room = arena.max_request_bytes
            elif batch.size > room:
                break
            room -= batch.size
            partitions.add(key)
            chosen.append(batch)
        for batch, outcome in impossible:
            self._arena(batch).finish(batch, outcome)
            self._queues.drop_head(batch, now)
            self.finished += 1
        return chosen

    def _group(self, batches: list[Batch]) -> list[ProduceTopic]:
        topics: dict[str, ProduceTopic] = {}
        for batch in batches:
            name = batch.queue.topic
            topic = topics.get(name)
            if topic is None:
                topic = topics[name] = ProduceTopic(name, self._cluster.topic_id(name), [])
            topic.partitions.append(ProducePartition(batch.queue.number, RecordBytes(batch.parts, batch.size)))
        return list(topics.values())

    def answered(self, request: InFlight, context: ProduceContext, frame: bytes, now: int) -> Applied:
        """Apply a response.

        Raises:
            WireError: it is not the answer to this request; nothing was changed.
        """
        answer = decode_produce(request.version, frame)
        paired = self._pair(context, answer)
        stale = leaders_changed = False
        for batch, result in paired:
            if batch.queue.source.retired:
                continue
            if outcomes.is_delivered(result):
                self._queues.appended(batch.queue, now)
                self._finish(batch, outcomes.delivered(result), now)
            elif outcomes.may_split(result) and batch.records > 1:
                if batch.queue.is_first(batch):
                    self._split(batch, now)
                else:
                    # Its pieces would hold room that the one before it may need for pieces of its own (law 6).
                    self._arena(batch).put_back(batch)
                    self._queues.put_back(batch, now, now)
            elif self._arena(batch).idempotent and outcomes.is_out_of_step(result):
                # With one before it that has no result yet, it came too early. If it is the first, the broker misses
                # what nobody will send again: a batch that has expired or failed (KIP-360).
                batch.queue.out_of_step |= batch.queue.is_first(batch)
                self._try_again(batch, error_name(result.error), now, at_once=batch.failures == 0)
            elif outcomes.may_retry(result):
                stale = stale or result.error in outcomes.STALE_METADATA
                leaders_changed |= self._take_hint(batch.queue.topic, result, answer)
                self._try_again(batch, error_name(result.error), now)
            else:
                self._finish(batch, outcomes.refused(result, batch.size, batch.records), now)
        return Applied(answer.throttle_ms, stale, leaders_changed)

    def _take_hint(self, topic: str, result: ProduceResult, answer: ProduceAnswer) -> bool:
        """Take the leader that a result names, if it does; whether it is news."""
        # The epoch of a topic of this name that is no more may be above all that are true.
        if result.leader < 0 or result.topic not in (topic, self._cluster.topic_id(topic)):
            return False
        return self._cluster.hint(topic, result.partition, result.leader, result.leader_epoch, answer.brokers)

    @staticmethod
    def _pair(context: ProduceContext, answer: ProduceAnswer) -> list[tuple[Batch, ProduceResult]]:
        """Each batch of the request with its result."""
        paired = []
        for result in answer.results:
            name = context.names.get(result.topic) if isinstance(result.topic, UUID) else result.topic
            batch = context.batches.get((name or "", result.partition))
            if batch is None:
                raise WireError(f"produce response for {result.topic}-{result.partition}, which was not sent")
            paired.append((batch, result))
        if len(paired) != len(context.batches) or len({id(batch) for batch, _ in paired}) != len(paired):
            raise WireError(f"produce response for {len(paired)} batches, {len(context.batches)} were sent")
        return paired

    def handed_over(self, context: ProduceContext, now: int) -> None:
        """With acks=0: all bytes of a request are in the kernel, and that is all there is to know."""
        for batch in context.batches.values():
            if not batch.queue.source.retired:
                self._finish(batch, Outcome(DELIVERED), now)

    def lost(self, context: ProduceContext, why: str, now: int) -> None:
        """The socket of a request was closed before its response: its batches are sent again."""
        for batch in context.batches.values():
            if not batch.queue.source.retired:
                self._try_again(batch, why, now)

    def _finish(self, batch: Batch, outcome: Outcome, now: int) -> None:
        if outcome.code != DELIVERED and self._arena(batch).idempotent:
            batch.queue.out_of_step = True  # its sequence was not appended, so what comes after it cannot be
        if self._arena(batch).finish_sent(batch, outcome):
            self._queues.done(batch, now)
        else:
            self._put_back_unready(batch, now)  # the records after this piece
        self.finished += 1

    def _split(self, batch: Batch, now: int) -> None:
        self._arena(batch).split(batch)
        self._put_back_unready(batch, now)
        self.finished += 1

    def _put_back_unready(self, batch: Batch, now: int) -> None:
        """The next piece goes before all successors, once a worker has made it."""
        batch.ready = False
        batch.failures = 0
        self._queues.put_back(batch, now, now)

    def _try_again(self, batch: Batch, why: str, now: int, *, at_once: bool = False) -> None:
        self._arena(batch).put_back(batch)
        batch.failures += 1
        batch.last_error = why
        delay_ns = 0 if at_once else self._backoff.delay_ns(batch.failures)
        self._queues.put_back(batch, now + delay_ns, now)

    def report_expired(self) -> None:
        """Give the batches whose delivery timeout ended their result."""
        expired, self._queues.expired = self._queues.expired, []
        for batch in expired:
            arena = self._arena(batch)
            why = f"last error: {batch.last_error}" if batch.last_error else self._why_waiting(batch.queue)
            arena.finish(batch, outcomes.expired(arena.attempts(batch), arena.delivery_timeout_ms, why))
            self.finished += 1
