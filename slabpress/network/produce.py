"""Produce requests: which batches go into one, and what its response (or its loss) does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

from slabpress.network import outcomes
from slabpress.network.backoff import Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.connection import Connection, InFlight
from slabpress.network.messages import FIRST_PRODUCE_WITH_ZSTD, PRODUCE, error_name
from slabpress.network.metadata import Cluster
from slabpress.network.outcomes import Outcome
from slabpress.network.partition import Batch, PartitionQueue
from slabpress.network.produce_answer import decode_produce
from slabpress.network.produce_codec import FIRST_WITH_TOPIC_IDS, encode_produce
from slabpress.network.queues import Queues
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import ProduceAnswer, ProduceResult, ProduceTopic, WireError
from slabpress.results import DELIVERED

_ZSTD: Final = 4


class ProduceContext:
    """What a Produce request in flight holds: its batches, and the names behind the topic ids it used, as integers.

    The ids are those of the request: metadata may know another one by the time of the response (KAFKA-19397).
    """

    __slots__ = ("batches", "names")

    def __init__(self, batches: dict[tuple[str, int], Batch], names: dict[int, str]) -> None:
        self.batches = batches
        self.names = names


class Applied(NamedTuple):
    """What a Produce response asks of its caller."""

    throttle_ms: int
    metadata_is_stale: bool
    leaders_changed: bool


# What most of them ask.
NOTHING_ELSE: Final = Applied(throttle_ms=0, metadata_is_stale=False, leaders_changed=False)


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
        lacks_id: a batch could not be sent for want of a producer id, since somebody set it to False.
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
        self.lacks_id = False

    def send(self, node: int, connection: Connection, now: int) -> bool:
        """Queue one Produce request to a broker on its connection; False if there is nothing for it any more."""
        version = connection.versions.get(PRODUCE)
        finished = self.finished
        chosen = self._choose(node, version, now)
        if not chosen or version is None:
            return self.finished > finished  # what failed has others behind it
        batches = [(batch, self._arenas[batch.queue.source.number]) for batch in chosen.values()]
        for batch, arena in batches:
            arena.make_bytes(batch)
        topics = self._group(chosen)
        if version >= FIRST_WITH_TOPIC_IDS and any(topic.topic_id is None for topic in topics):
            # Azure Event Hubs offers v13 and knows no ids (franz-go#1312).
            version = FIRST_WITH_TOPIC_IDS - 1
        arena = batches[0][1]
        correlation_id = connection.next_id(unanswered=arena.acks == 0)
        request = encode_produce(
            version,
            correlation_id,
            connection.client_id,
            arena.acks,
            self._settings.request_timeout_ms,
            topics,
        )
        for batch, source in batches:
            source.start(batch)
            self._queues.take(batch, now)
        names = {}
        if version >= FIRST_WITH_TOPIC_IDS:
            names = {topic.topic_id.int: topic.name for topic in topics if topic.topic_id is not None}
        connection.send(request, correlation_id, PRODUCE, version, ProduceContext(chosen, names), now)
        arena.counters.count_request(request.size)
        return True

    def _arena(self, batch: Batch) -> ArenaBatches:
        return self._arenas[batch.queue.source.number]

    def _choose(self, node: int, version: int | None, now: int) -> dict[tuple[str, int], Batch]:
        """The heads that go into one request; those that can never be sent to this broker are failed."""
        chosen: dict[tuple[str, int], Batch] = {}
        impossible: list[tuple[Batch, Outcome]] = []
        room = acks = 0
        for batch in self._queues.heads(node):
            if version is None:
                impossible.append((batch, outcomes.no_common_version(node)))
                continue
            arena = self._arenas[batch.queue.source.number]
            if arena.idempotent and arena.sequences.producer_id is None:
                refusal = arena.refusal(now)
                if refusal is not None:
                    impossible.append((batch, refusal))
                self.lacks_id = True
                continue  # it is being asked for
            arena.measure(batch)
            if version < FIRST_PRODUCE_WITH_ZSTD and batch.codec == _ZSTD:
                impossible.append((batch, outcomes.unsupported_zstd(version)))
                continue
            # A request has one acks and one batch of a topic-partition, whatever arenas they come from.
            key = batch.queue.key
            if chosen and (key in chosen or arena.acks != acks):
                continue
            if not chosen:
                room, acks = arena.max_request_bytes, arena.acks
            elif batch.size > room:
                break
            room -= batch.size
            chosen[key] = batch
        for batch, outcome in impossible:
            self._arena(batch).finish(batch, outcome)
            self._queues.drop_head(batch, now)
            self.finished += 1
        return chosen

    def _group(self, batches: Mapping[tuple[str, int], Batch]) -> list[ProduceTopic]:
        topics: dict[str, ProduceTopic] = {}
        for (name, number), batch in batches.items():
            topic = topics.get(name)
            if topic is None:
                topic = topics[name] = ProduceTopic(name, self._cluster.topic_id(name), [])
            topic.partitions.append((number, batch.parts, batch.size))
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
                arena = self._arenas[batch.queue.source.number]
                last = arena.finish_delivered(batch, result.base_offset, result.append_time_ms)
                self._has_result(batch, now, last=last)
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
                if batch.queue.is_first(batch):
                    batch.queue.begin_anew_from(batch)
                self._try_again(batch, error_name(result.error), now, at_once=batch.failures == 0)
            elif outcomes.may_retry(result):
                stale = stale or result.error in outcomes.STALE_METADATA
                leaders_changed |= self._take_hint(batch.queue.topic, result, answer)
                self._try_again(batch, error_name(result.error), now)
            else:
                self._finish(batch, outcomes.refused(result, batch.size, batch.records), now)
        if stale or leaders_changed or answer.throttle_ms:
            return Applied(answer.throttle_ms, stale, leaders_changed)
        return NOTHING_ELSE

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
        left = dict(context.batches)
        for result in answer.results:
            name = context.names.get(result.topic.int, "") if isinstance(result.topic, UUID) else result.topic
            batch = left.pop((name, result.partition), None)
            if batch is None:
                raise WireError(f"produce response for {result.topic}-{result.partition}, which was not sent")
            paired.append((batch, result))
        if left:
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
            batch.queue.begin_anew_from(batch)  # its sequence was not appended, so what comes after it cannot be
        self._has_result(batch, now, last=self._arena(batch).finish_sent(batch, outcome))

    def _has_result(self, batch: Batch, now: int, *, last: bool) -> None:
        if last:
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
