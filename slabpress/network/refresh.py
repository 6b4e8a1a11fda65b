"""Asking for metadata and telling it on: to the cluster's picture, to the topic tables, to the queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.broker import Broker
from slabpress.network.brokers import Brokers
from slabpress.network.connection import InFlight
from slabpress.network.messages import METADATA, encode_metadata, error_name
from slabpress.network.metadata import Cluster, RefreshSchedule
from slabpress.network.metadata_codec import decode_metadata
from slabpress.network.partition import PartitionQueue
from slabpress.network.queues import Queues
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import TopicMetadata, WireError

_LEADER_NOT_AVAILABLE: Final = 5
_REBOOTSTRAP_REQUIRED: Final = 129


class MetadataContext:
    """Marks a Metadata request in flight."""


class Refresher:
    """Keeps metadata of the wanted topics fresh.

    Args:
        arenas: whose topic tables ask and are answered.
        brokers: who may be asked.
        queues: whose queues are routed to the leaders.
        settings: this process's: how old metadata may be, and when the known brokers are given up.
        backoff: between requests while something is missing.

    Attributes:
        schedule: when to ask.
        cluster: what is known.
        answered_topics: topic entries that were answered since somebody set it to 0.
    """

    def __init__(
        self,
        arenas: Mapping[int, ArenaBatches],
        cluster: Cluster,
        brokers: Brokers,
        queues: Queues,
        settings: NetworkSettings,
        backoff: Backoff,
    ) -> None:
        self._arenas = arenas
        self._brokers = brokers
        self._queues = queues
        self._wanted: dict[int, dict[str, int]] = {}  # by arena number, as of the version of its table
        self._wanted_versions: dict[int, int] = {}
        self._errors: dict[str, int] = {}
        self._failure = ""
        self.cluster = cluster
        self._give_up_after_ns = settings.metadata_recovery_rebootstrap_trigger_ms * NS_PER_MS
        self._wanted_since_ns: int | None = None  # the time without metadata that is wanted (KIP-1102)
        self.schedule = RefreshSchedule(settings.metadata_max_age_ms, backoff)
        self.answered_topics = 0

    def look(self, now: int) -> bool:
        """See whether the coordinators want something new; whether they did."""
        changed = False
        for number, arena in self._arenas.items():
            version = arena.topics.wanted_version()
            if version == self._wanted_versions.get(number, 0):
                continue
            changed = True
            self._wanted_versions[number] = version
            before, wanted = self._wanted.get(number, {}), arena.topics.wanted()
            self._wanted[number] = wanted
            if wanted.items() - before.items():
                self.schedule.now(now)
            elif wanted:
                self.schedule.soon(now)
        return changed

    def forget(self, number: int) -> None:
        """Ask no more for what an arena wanted."""
        self._wanted.pop(number, None)
        self._wanted_versions.pop(number, None)

    def _names(self) -> set[str]:
        """Topics that are wanted, or that have batches all the same."""
        names = {
            queue.topic
            for arena in self._arenas.values()
            for queue in arena.queues
            if queue is not None and (queue.waiting or queue.in_flight)
        }
        return names.union(*self._wanted.values())

    def turn(self, now: int) -> None:
        """Ask, or try to reach somebody to ask, if it is time."""
        if self._queues.leaderless:
            self.schedule.soon(now)
        give_up_at_ns = self.give_up_at_ns()
        if give_up_at_ns is not None and give_up_at_ns <= now and not self.schedule.in_flight:
            self._start_over(now)
        if not self.schedule.is_due(now):
            return
        names = self._names()
        if not names:
            self.schedule.idle()
            self._failure = ""
            self._wanted_since_ns = None
            return
        if self._wanted_since_ns is None:
            self._wanted_since_ns = now
        broker = self._brokers.for_metadata(now)
        if broker is None:
            self._brokers.connect_any(now)
            return
        self._ask(broker, names, now)

    def _ask(self, broker: Broker, names: set[str], now: int) -> None:
        connection = broker.connection
        if connection is None:
            return
        version = connection.versions.get(METADATA)
        if version is None:
            broker.last_error = "speaks no Metadata version from 1 to 13"
            self.schedule.sent()
            self.lost(f"{broker}: {broker.last_error}", now)
            broker.close(now)
            return
        correlation_id = connection.next_id()
        request = encode_metadata(version, correlation_id, connection.client_id, sorted(names))
        connection.send(request, correlation_id, METADATA, version, MetadataContext(), now)
        for arena in self._arenas.values():
            arena.counters.count("metadata_requests")
        self.schedule.sent()
        broker.asked_at_ns = now
        broker.flush(now)

    def answered(self, request: InFlight, frame: bytes, now: int) -> int:
        """Apply a Metadata response; its throttle time in ms.

        Raises:
            WireError: it does not parse, or the broker says that it cannot answer.
        """
        # A topic's entry may be another's by now.
        self.look(now)
        names = self._names()
        answer = decode_metadata(request.version, frame, names)
        if answer.error == _REBOOTSTRAP_REQUIRED:
            self._start_over(now)
        if answer.error or not answer.brokers:
            said = error_name(answer.error) if answer.error else "it names no brokers"
            raise WireError(f"no metadata: {said}")
        self._failure = ""
        self._wanted_since_ns = None
        renewed = self.cluster.update(answer)
        self.cluster.forget_all_but(names)
        self._brokers.update(self.cluster.brokers, now)
        self._errors = {topic.name: topic.error for topic in answer.topics if topic.error}
        for topic in answer.topics:
            self._tell(topic)
        for arena in self._arenas.values():
            arena.note_brokers(len(answer.brokers))
        self._forget_leaders(renewed, now)
        self.route(now)
        complete = not self._errors and not self._queues.leaderless
        self.schedule.answered(now, complete=complete)
        return answer.throttle_ms

    def give_up_at_ns(self) -> int | None:
        """When the known brokers are given up, if no metadata comes before; None where that is not to be.

        Whoever is being asked has until request_timeout_ms all the same.
        """
        if self._wanted_since_ns is None or not self._brokers.may_start_over:
            return None
        return self._wanted_since_ns + self._give_up_after_ns

    def _start_over(self, now: int) -> None:
        """Forget brokers and leaders, and go by the bootstrap servers again (KIP-1102)."""
        if self._brokers.may_start_over:
            self._wanted_since_ns = now
            self._brokers.start_over(now)
            self.cluster.forget_brokers()
            self.route(now)

    def _tell(self, topic: TopicMetadata) -> None:
        """Answer for a topic in every arena that wants it."""
        partitions = len(topic.leaders) if topic.error == 0 else 0
        error = topic.error if topic.error or partitions else _LEADER_NOT_AVAILABLE
        for number, arena in self._arenas.items():
            index = self._wanted.get(number, {}).get(topic.name)
            if index is not None:
                arena.topics.set_answer(index, partitions or None, error)
                self.answered_topics += 1

    def _forget_leaders(self, topics: set[str], now: int) -> None:
        """The log of a topic that was created again knows no sequences: as with a new leader, one batch goes first."""
        for arena in self._arenas.values() if topics else ():
            for queue in arena.queues:
                if queue is not None and queue.topic in topics:
                    self._queues.set_leader(queue, None, now)

    def route(self, now: int) -> None:
        """Give every queue the leader that is known now."""
        for arena in self._arenas.values():
            for queue in arena.queues:
                if queue is not None:
                    self.route_one(queue, now)

    def route_one(self, queue: PartitionQueue, now: int) -> None:
        """Give one queue the leader that is known now."""
        self._queues.set_leader(queue, self.cluster.leader(queue.topic, queue.number), now)

    def lost(self, why: str, now: int) -> None:
        """A request's connection was closed."""
        self._failure = why
        self.schedule.failed(now)

    def report(self) -> str:
        """Why there is no metadata, in words; empty while there is, or nothing has gone wrong yet.

        A request that fails stays the reason until one succeeds, for a connection that is open says nothing yet: a
        broker whose metadata is too large answers every handshake.
        """
        bootstrap = self._brokers.bootstrap_report() if self._brokers.none_reachable else ""
        return bootstrap or self._failure

    def topic_error(self, topic: str) -> int:
        """The error of a topic's last answer, 0 for none."""
        return self._errors.get(topic, 0)
