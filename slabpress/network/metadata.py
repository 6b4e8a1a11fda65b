"""What is known of the cluster, and when to ask again. Pure: answers and time are passed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.wire import BrokerAddress, Leaders, MetadataAnswer, TopicMetadata

# So many answers in a row with an older leader epoch are believed, as franz-go does it: brokers that lag behind are not
# all that many, and an epoch that went back for good (a topic created again where there are no topic ids, an unclean
# recovery) would leave the partition with a leader that is none, for ever.
_REWINDS_MAX: Final = 5


class Topic:
    """A topic as the cluster last described it.

    Attributes:
        topic_id: its id, None where the cluster has none.
        leaders: the leaders of its partitions.
        rewinds: how many answers in a row had an older leader epoch for one of them.
    """

    __slots__ = ("leaders", "rewinds", "topic_id")

    def __init__(self, topic_id: UUID | None, leaders: Leaders, rewinds: int = 0) -> None:
        self.topic_id = topic_id
        self.leaders = leaders
        self.rewinds = rewinds


class Cluster:
    """Brokers, topics and leaders.

    Attributes:
        brokers: node id -> address.
        topics: name -> topic; one that the cluster does not know is absent.
    """

    def __init__(self) -> None:
        self.brokers: dict[int, BrokerAddress] = {}
        self.topics: dict[str, Topic] = {}

    def update(self, answer: MetadataAnswer) -> set[str]:
        """Take a Metadata response; the topics that have another id than before: they were created again."""
        self.brokers = {broker.node: broker for broker in answer.brokers}
        renewed = set()
        for topic in answer.topics:
            if topic.error:
                continue
            known = self.topics.get(topic.name)
            # Its leader epochs begin anew as well.
            if known is None or known.topic_id != topic.topic_id:
                self.topics[topic.name] = Topic(topic.topic_id, topic.leaders)
                renewed |= {topic.name} if known is not None else set()
            else:
                self.topics[topic.name] = self._newer(known, topic)
        return renewed

    @staticmethod
    def _newer(known: Topic, topic: TopicMetadata) -> Topic:
        """What is known now; the answer's leaders are changed: where what was known is newer, that stays."""
        leaders = topic.leaders
        lags = False
        for partition, (epoch, before) in enumerate(zip(leaders.epochs, known.leaders.epochs, strict=False)):
            # A broker that lags behind answers with an older epoch (KIP-320).
            if -1 < epoch < before:
                lags = True
                if known.rewinds < _REWINDS_MAX:
                    leaders.nodes[partition] = known.leaders.nodes[partition]
                    leaders.epochs[partition] = before
        return Topic(topic.topic_id, leaders, known.rewinds + 1 if lags and known.rewinds < _REWINDS_MAX else 0)

    def forget_all_but(self, topics: Iterable[str]) -> None:
        """Drop topics that nobody asks for any more."""
        kept = set(topics)
        self.topics = {name: topic for name, topic in self.topics.items() if name in kept}

    def forget_brokers(self) -> None:
        """Know no broker any more, and so no leader; a leader's epoch still tells old answers from new ones."""
        self.brokers = {}

    def leader(self, topic: str, partition: int) -> int | None:
        """The node id of a partition's leader; None where none is known, or its address is not."""
        known = self.topics.get(topic)
        if known is None or not 0 <= partition < len(known.leaders):
            return None
        leader = known.leaders.nodes[partition]
        return leader if leader in self.brokers else None

    def topic_id(self, topic: str) -> UUID | None:
        """A topic's id, None where the cluster told none."""
        known = self.topics.get(topic)
        return None if known is None else known.topic_id

    def hint(self, topic: str, partition: int, leader: int, epoch: int, brokers: Iterable[BrokerAddress]) -> bool:
        """Take the leader that a Produce response named (KIP-951); whether it is news."""
        known = self.topics.get(topic)
        if known is None or not 0 <= partition < len(known.leaders) or epoch <= known.leaders.epochs[partition]:
            return False
        addresses = {broker.node: broker for broker in brokers}
        if leader not in self.brokers:
            if leader not in addresses:
                return False
            self.brokers[leader] = addresses[leader]
        known.leaders.nodes[partition] = leader
        known.leaders.epochs[partition] = epoch
        return True


class RefreshSchedule:
    """When to ask for metadata: on age, at once for something new, with backoff while something is missing.

    Args:
        max_age_ms: metadata is asked for again after this long.
        backoff: delays while an answer leaves something open (KIP-580), so that a topic that does not exist
            is no storm of requests.
    """

    def __init__(self, max_age_ms: int, backoff: Backoff) -> None:
        self._max_age_ns = max_age_ms * NS_PER_MS
        self._backoff = backoff
        self._misses = 0
        self._not_before_ns = 0
        self._asked_meanwhile = False
        self.due_at_ns: int | None = None
        self.in_flight = False

    def now(self, now: int) -> None:
        """Something new is wanted: ask at once."""
        self._not_before_ns = now
        self._misses = 0
        self.soon(now)

    def soon(self, now: int) -> None:
        """Something is missing or stale: ask as soon as the backoff allows."""
        if self.in_flight:
            self._asked_meanwhile = True
            return
        at = max(now, self._not_before_ns)
        self.due_at_ns = at if self.due_at_ns is None else min(at, self.due_at_ns)

    def is_due(self, now: int) -> bool:
        """Whether to ask now."""
        return not self.in_flight and self.due_at_ns is not None and self.due_at_ns <= now

    def idle(self) -> None:
        """There is nothing to ask for."""
        self.due_at_ns = None

    def sent(self) -> None:
        """A request is on its way."""
        self.in_flight = True
        self.due_at_ns = None
        self._asked_meanwhile = False

    def answered(self, now: int, *, complete: bool) -> None:
        """The answer came; ``complete`` if it left nothing open that is needed."""
        self.in_flight = False
        self._misses = 0 if complete else self._misses + 1
        self._not_before_ns = now + self._backoff.delay_ns(max(1, self._misses))
        again = self._asked_meanwhile or not complete
        on_age = max(now + self._max_age_ns, self._not_before_ns)
        self.due_at_ns = self._not_before_ns if again else on_age

    def failed(self, now: int) -> None:
        """No answer will come."""
        if self.in_flight:
            self.answered(now, complete=False)
