"""The order of sending, without processes, sockets or time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slabpress.network.partition import Batch, PartitionQueue
from slabpress.network.queues import Queues

FAR = 10**12
NODE = 7


class FakeSource:
    """An arena of which only the READY states are left."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.retired = False
        self.in_flight_limit = 1
        self.begun: list[PartitionQueue] = []
        self.queues: list[PartitionQueue | None] = []
        self.finished: set[int] = set()

    def is_ready(self, index: int) -> bool:
        return index in self.finished

    def note_leader(self, queue: PartitionQueue) -> None:
        self.leader = queue.leader

    def begin_anew(self, queue: PartitionQueue) -> None:
        self.begun.append(queue)


class Bench:
    """Queues with one source and batches numbered from 1."""

    def __init__(self, limit: int = 1, partitions: int = 1) -> None:
        self.queues = Queues()
        self.source = FakeSource()
        self.source.in_flight_limit = limit
        self.partitions = [PartitionQueue(self.source, "t", number) for number in range(partitions)]
        self.source.queues.extend(self.partitions)
        self.sealed = 0

    def seal(self, partition: int = 0, *, ready: bool = True, deadline: int = FAR, now: int = 0) -> Batch:
        self.sealed += 1
        if ready:
            self.source.finished.add(self.sealed)
        batch = Batch(self.partitions[partition], self.sealed, self.sealed, deadline)
        self.queues.append(batch, now)
        return batch

    def route(self, leader: int | None = NODE, now: int = 0) -> None:
        for queue in self.partitions:
            self.queues.set_leader(queue, leader, now)

    def heads(self, leader: int = NODE) -> list[Batch]:
        return list(self.queues.heads(leader))


def test_a_batch_that_is_finished_first_waits_for_its_predecessor() -> None:
    bench = Bench()
    bench.route()
    first, second = bench.seal(ready=False), bench.seal()
    assert bench.heads() == []
    bench.source.finished.add(first.index)
    assert bench.queues.became_ready(bench.source, [first.index, second.index], 0)
    assert bench.heads() == [first]


def test_ready_batches_that_are_no_heads_are_no_news() -> None:
    bench = Bench()
    bench.route()
    bench.seal()
    second = bench.seal()
    assert not bench.queues.became_ready(bench.source, [1, second.index], 0)


def test_one_in_flight_mutes_the_partition_and_no_other() -> None:
    bench = Bench(partitions=2)
    bench.route()
    first, second, other = bench.seal(0), bench.seal(0), bench.seal(1)
    bench.queues.take(first, 0)
    assert bench.heads() == [other]
    bench.queues.done(first, 0)
    assert bench.heads() == [other, second]


def test_several_may_be_in_flight_once_the_leader_knows_the_sequences() -> None:
    bench = Bench(limit=2)
    bench.route()
    batches = [bench.seal() for _ in range(6)]
    bench.queues.take(batches[0], 0)
    assert bench.heads() == [], "a broker that knows nothing of the producer takes any sequence as its first"
    bench.queues.appended(batches[0].queue, 0)
    bench.queues.done(batches[0], 0)
    for batch in batches[1:3]:
        assert bench.heads() == [batch]
        bench.queues.take(batch, 0)
    assert bench.heads() == []


def _with_two_on_the_wire() -> tuple[Bench, list[Batch]]:
    bench = Bench(limit=2)
    bench.route()
    batches = [bench.seal() for _ in range(4)]
    bench.queues.appended(batches[0].queue, 0)
    for batch in batches[:2]:
        bench.queues.take(batch, 0)
    return bench, batches


def test_after_a_failed_try_one_goes_alone_until_it_is_appended() -> None:
    bench, batches = _with_two_on_the_wire()
    bench.queues.put_back(batches[1], 0, 0)
    bench.queues.put_back(batches[0], 0, 0)
    assert bench.heads() == [batches[0]]
    bench.queues.take(batches[0], 0)
    assert bench.heads() == []


def test_a_new_leader_gets_one_once_nothing_is_on_the_wire_to_the_former() -> None:
    bench, batches = _with_two_on_the_wire()
    bench.queues.set_leader(batches[0].queue, 8, 0)
    assert bench.heads(8) == []
    bench.queues.done(batches[0], 0)
    assert bench.heads(8) == []
    bench.queues.put_back(batches[1], 0, 0)
    assert bench.heads(8) == [batches[1]]


def test_a_broker_forgets_what_is_long_ago() -> None:
    bench = Bench(limit=2)
    bench.route()
    first, second = bench.seal(now=0), bench.seal(now=0)
    bench.queues.appended(first.queue, 0)
    later = 700_000_000_000
    bench.queues.take(first, later)
    assert bench.heads() == []
    bench.queues.appended(first.queue, later)
    bench.queues.done(first, later)
    assert bench.heads() == [second]


def test_a_batch_that_is_put_back_goes_before_its_successors_after_the_backoff() -> None:
    bench = Bench()
    bench.route()
    first, second = bench.seal(), bench.seal()
    bench.queues.take(first, 0)
    bench.queues.put_back(first, 50, 10)
    assert bench.heads() == []
    assert bench.queues.next_ns == 50
    bench.queues.tick(49)
    assert bench.heads() == []
    bench.queues.tick(50)
    assert bench.heads() == [first]
    bench.queues.take(first, 50)
    bench.queues.done(first, 50)
    assert bench.heads() == [second]


def test_without_a_leader_it_waits_and_follows_every_leader() -> None:
    bench = Bench()
    batch = bench.seal()
    assert list(bench.queues.leaderless) == [batch.queue]
    bench.route(1)
    assert bench.heads(1) == [batch]
    assert not bench.queues.leaderless
    bench.route(2)
    assert (bench.heads(1), bench.heads(2)) == ([], [batch])
    assert set(bench.queues.sendable) == {2}
    bench.route(None)
    assert list(bench.queues.leaderless) == [batch.queue]


def test_expiry_takes_what_is_ready_and_not_on_the_wire() -> None:
    bench = Bench()
    bench.route()
    first, second, third = bench.seal(deadline=100), bench.seal(deadline=110), bench.seal(deadline=300)
    bench.queues.take(first, 0)
    bench.queues.tick(120)
    assert bench.queues.expired == [second]
    bench.queues.put_back(first, 130, 120)
    assert bench.queues.expired == [second, first]
    assert bench.heads() == []
    bench.queues.tick(130)
    assert bench.heads() == [third]


def test_what_a_worker_holds_expires_when_it_is_ready() -> None:
    bench = Bench()
    bench.route()
    batch = bench.seal(ready=False, deadline=100)
    bench.queues.tick(200)
    assert bench.queues.expired == []
    bench.source.finished.add(batch.index)
    bench.queues.became_ready(bench.source, [batch.index], 200)
    assert bench.queues.expired == [batch]


def test_partitions_take_turns() -> None:
    bench = Bench(partitions=3)
    bench.route()
    for partition in (0, 0, 1, 2):
        bench.seal(partition)
    first = bench.heads()[0]
    bench.queues.take(first, 0)
    bench.queues.done(first, 0)
    assert [batch.queue.number for batch in bench.heads()] == [1, 2, 0]


def test_timers_do_not_grow_with_retries() -> None:
    bench = Bench()
    bench.route()
    batch = bench.seal()
    for now in range(1000):
        bench.queues.tick(now)
        bench.queues.take(batch, now)
        bench.queues.put_back(batch, now + 1, now)
    assert len(bench.queues._retries) == len(bench.queues._expiries) == 1


class QueuesMachine(RuleBasedStateMachine):
    """Whatever happens, each partition's batches end or go on the wire in seal order, and none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(partitions=3)
        self.now = 0
        self.on_wire: list[Batch] = []
        self.ended: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.unfinished: list[int] = []

    def _end(self, batch: Batch) -> None:
        self.ended[batch.queue.number].append(batch.seal_number)

    @rule(partition=st.integers(0, 2), ready=st.booleans())
    def seal(self, partition: int, ready: bool) -> None:
        batch = self.bench.seal(partition, ready=ready, deadline=self.now + 20, now=self.now)
        if not ready:
            self.unfinished.append(batch.index)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.unfinished))
        self.unfinished.remove(index)
        self.bench.source.finished.add(index)
        self.bench.queues.became_ready(self.bench.source, [index], self.now)

    @rule(leader=st.sampled_from([None, 1, 2]), partition=st.integers(0, 2))
    def lead(self, leader: int | None, partition: int) -> None:
        self.bench.queues.set_leader(self.bench.partitions[partition], leader, self.now)

    @rule(leader=st.sampled_from([1, 2]))
    def send(self, leader: int) -> None:
        for batch in self.bench.heads(leader)[:1]:
            assert batch.queue.leader == leader
            assert batch.ready
            assert self.now < batch.deadline_ns
            self.bench.queues.take(batch, self.now)
            self.on_wire.append(batch)

    @precondition(lambda self: self.on_wire)
    @rule(again=st.booleans(), backoff=st.integers(0, 5))
    def answer(self, again: bool, backoff: int) -> None:
        batch = self.on_wire.pop(0)
        if again:
            self.bench.queues.put_back(batch, self.now + backoff, self.now)
        else:
            self._end(batch)
            self.bench.queues.done(batch, self.now)

    @rule(passed=st.integers(1, 10))
    def wait(self, passed: int) -> None:
        self.now += passed
        self.bench.queues.tick(self.now)

    @invariant()
    def in_order_and_complete(self) -> None:
        held = sum(len(queue.waiting) + queue.in_flight for queue in self.bench.partitions)
        ended = sum(map(len, self.ended.values())) + len(self.bench.queues.expired)
        assert held + ended == self.bench.sealed
        for queue in self.bench.partitions:
            numbers = [batch.seal_number for batch in queue.waiting]
            assert numbers == sorted(numbers)
            assert queue.in_flight <= 1
            assert self.ended[queue.number] == sorted(self.ended[queue.number])

    @invariant()
    def every_queue_is_in_one_place(self) -> None:
        queues = self.bench.queues
        for queue in self.bench.partitions:
            peers = [peers for sources in queues.sendable.values() for peers in sources.values()]
            places = [queue in own for own in peers].count(True)
            assert all(peers), "an arena without a queue must not be kept"
            places += queue in queues.leaderless
            head = queue.waiting[0] if queue.waiting else None
            free = head is not None and head.ready and not queue.in_flight
            if free and queue.retry_at_ns <= self.now:
                assert places == 1
            elif free:
                assert places == 0
                assert queue.retry_armed
            else:
                assert places == 0


TestQueues = QueuesMachine.TestCase
