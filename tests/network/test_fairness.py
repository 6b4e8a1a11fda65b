"""Several arenas share the way to one broker: each in its turn, and one that goes takes everything with it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from slabpress.network.partition import Batch, PartitionQueue
from slabpress.network.queues import NEVER_NS, Queues
from tests.network.test_queues import FAR, NODE, FakeSource

OTHER_NODE = NODE + 1


class Sources:
    """Several arenas with so many topic-partitions each; their batches are numbered over all of them."""

    def __init__(self, *partitions: int, limit: int = 1) -> None:
        self.queues = Queues()
        self.sources = [FakeSource(number) for number in range(len(partitions))]
        for source in self.sources:
            source.in_flight_limit = limit
        for source, count in zip(self.sources, partitions, strict=True):
            for number in range(count):
                queue = PartitionQueue(source, "t", number)
                queue.leader = NODE
                source.queues.append(queue)
        self.sealed = 0

    def queue(self, source: int, partition: int) -> PartitionQueue:
        queue = self.sources[source].queues[partition]
        assert queue is not None
        return queue

    def seal(self, source: int, partition: int = 0, *, ready: bool = True, deadline: int = FAR) -> Batch:
        self.sealed += 1
        if ready:
            self.sources[source].finished.add(self.sealed)
        batch = Batch(self.queue(source, partition), self.sealed, self.sealed, deadline)
        self.queues.append(batch, 0)
        return batch

    def seal_all(self) -> None:
        for source in self.sources:
            for partition in range(len(source.queues)):
                self.seal(source.number, partition)

    def heads(self, leader: int = NODE) -> list[tuple[int, int]]:
        """The arena and partition of each head, in turn."""
        return [_place(batch) for batch in self.queues.heads(leader)]

    def request(self, count: int) -> list[Batch]:
        """Send the first so many heads as one request."""
        chosen = [batch for batch, _ in zip(self.queues.heads(NODE), range(count), strict=False)]
        for batch in chosen:
            self.queues.take(batch, 0)
        return chosen


def _place(batch: Batch) -> tuple[int, int]:
    return batch.queue.source.number, batch.queue.number


def test_heads_go_round_the_arenas() -> None:
    """One of each, then a second of each that has one, and so on."""
    bench = Sources(3, 1, 2)
    bench.seal_all()
    assert bench.heads() == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]


def test_after_a_request_the_next_begins_with_another_arena() -> None:
    bench = Sources(3, 2, 1)
    bench.seal_all()
    assert [_place(batch) for batch in bench.request(1)] == [(0, 0)]
    assert bench.heads() == [(1, 0), (2, 0), (0, 1), (1, 1), (0, 2)]
    assert [_place(batch) for batch in bench.request(2)] == [(1, 0), (2, 0)]
    assert bench.heads() == [(0, 1), (1, 1), (0, 2)]


def test_an_arena_that_was_passed_over_is_the_next_requests_first() -> None:
    """As where its batch is of a topic-partition that the request has already, or needs another acks."""
    bench = Sources(2, 2, 2)
    bench.seal_all()
    heads = list(bench.queues.heads(NODE))
    for batch in (heads[0], heads[2], heads[3]):
        bench.queues.take(batch, 0)
    assert bench.heads()[0] == (1, 0)


def test_an_arena_whose_retry_or_answer_comes_back_waits_for_its_turn() -> None:
    bench = Sources(1, 1, 1)
    for _ in range(2):
        bench.seal_all()
    answered, put_back = bench.request(1)[0], bench.request(1)[0]
    bench.queues.done(answered, 0)
    bench.queues.put_back(put_back, 0, 0)
    assert bench.heads() == [(2, 0), (0, 0), (1, 0)]


def test_each_broker_has_its_own_round() -> None:
    bench = Sources(2, 2)
    for source in range(2):
        bench.queues.set_leader(bench.queue(source, 1), OTHER_NODE, 0)
    bench.seal_all()
    assert (bench.heads(), bench.heads(OTHER_NODE)) == ([(0, 0), (1, 0)], [(0, 1), (1, 1)])
    bench.request(1)
    assert (bench.heads(), bench.heads(OTHER_NODE)) == ([(1, 0)], [(0, 1), (1, 1)])


@given(partitions=st.lists(st.integers(1, 9), min_size=2, max_size=6), sizes=st.lists(st.integers(1, 7), min_size=30))
def test_no_arena_waits_longer_than_one_round(partitions: list[int], sizes: list[int]) -> None:
    """Whatever fits into each request, while every topic-partition always has a batch more."""
    bench = Sources(*partitions)
    for _ in range(2):
        bench.seal_all()
    last_served = dict.fromkeys(range(len(partitions)), 0)
    for number, size in enumerate(sizes, 1):
        heads = Counter(source for source, _ in bench.heads())
        request = bench.request(size)
        served = Counter(batch.queue.source.number for batch in request)
        for source, count in served.items():
            last_served[source] = number
            # Nobody is given a second batch while another, who has one more, is still given less.
            assert all(count <= served[other] + 1 for other in heads if served[other] < heads[other])
        assert all(number - last < len(partitions) for last in last_served.values())
        for batch in request:
            bench.seal(*_place(batch))
            bench.queues.done(batch, 0)


def test_forget_takes_everything_of_one_arena_and_nothing_of_another() -> None:
    """Sendable, leaderless, unready, waiting for a retry, expired, on the wire: one of each, of two arenas."""
    bench = Sources(6, 6)
    queues = bench.queues
    for source in (0, 1):
        queues.set_leader(bench.queue(source, 1), None, 0)
    retried, expired, on_wire, unready = [], [], [], []
    for source in (0, 1):
        bench.seal(source, 0)
        bench.seal(source, 1)
        unready.append(bench.seal(source, 2, ready=False))
        retried.append(bench.seal(source, 3))
        expired.append(bench.seal(source, 4, deadline=10))
        on_wire.append(bench.seal(source, 5))
        bench.seal(source, 5)
    for batch in (*retried, *on_wire):
        queues.take(batch, 0)
    for place, batch in enumerate(retried):
        queues.put_back(batch, 50 + place, 0)
    queues.tick(20)
    assert [_place(batch) for batch in queues.expired] == [(0, 4), (1, 4)]

    gone, other = bench.sources
    queues.forget(gone)
    assert bench.heads() == [(1, 0)]
    assert list(queues.leaderless) == [bench.queue(1, 1)]
    assert [_place(batch) for batch in queues.expired] == [(1, 4)]
    assert all(not queue.waiting for queue in gone.queues if queue is not None)
    # Its timers are gone as well: the next that is due is the other's retry.
    assert queues.next_ns == 51
    queues.tick(60)
    assert bench.heads() == [(1, 0), (1, 3)]
    # What a worker finishes of it now is nobody's.
    gone.finished.add(unready[0].index)
    assert not queues.became_ready(gone, [unready[0].index], 60)
    other.finished.add(unready[1].index)
    assert queues.became_ready(other, [unready[1].index], 60)
    queues.done(on_wire[1], 60)
    assert sorted(bench.heads()) == [(1, 0), (1, 2), (1, 3), (1, 5)]


def test_forget_leaves_the_others_timers_in_order() -> None:
    """Timers lie in a heap: without what was above them there, a later one must not come first."""
    bench = Sources(2, 4)
    for source, partition, deadline in ((0, 0, 1), (1, 0, 5), (0, 1, 2), (1, 1, 6), (1, 2, 7), (1, 3, 3)):
        bench.seal(source, partition, deadline=deadline)
    bench.queues.forget(bench.sources[0])
    seen = []
    while (due := bench.queues.next_ns) != NEVER_NS:
        bench.queues.tick(due)
        seen.append(due)
    assert seen == [batch.deadline_ns for batch in bench.queues.expired] == [3, 5, 6, 7]


def test_the_last_arena_that_is_forgotten_leaves_nothing() -> None:
    bench = Sources(3)
    bench.seal_all()
    bench.queues.forget(bench.sources[0])
    queues = bench.queues
    assert (queues.sendable, queues.leaderless, queues.expired, queues.next_ns) == ({}, {}, [], NEVER_NS)
    assert (queues._unready, queues._retries, queues._expiries) == ({}, [], [])
