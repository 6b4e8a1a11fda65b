"""Exactly once against a model of Kafka's brokers: whatever is lost, late, moved, killed or forgotten.

The producer's side is real (``tests/support/idempotent_bench.py``); what brokers and the network may do, and what no
producer can make good and is left out, is in ``tests/support/model_cluster.py``. In the end, when all is healthy
again and everything has a result: each log has each record at most once, in the order of sealing; what was reported
as delivered is where that says, what was reported as never sent is not there, and every slab, output buffer and
descriptor is free.
"""

from __future__ import annotations

import contextlib
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slabpress.network import batches
from slabpress.network.partition import PartitionQueue
from slabpress.network.sequences import EPOCH_MAX, SEQUENCE_MASK
from tests.support.idempotent_bench import IdempotentBench, idempotent_bench
from tests.support.limited_broker import HEADER_BYTES

BROKERS: Final = 3
PARTITIONS: Final = 2
NODES: Final = st.integers(0, BROKERS - 1)
# Mostly the same one: what matters happens between batches of one topic-partition.
PLACES: Final = st.sampled_from([0, 0, 0, 1])
TIMES: Final = st.integers(1, 4)
# NOT_LEADER_OR_FOLLOWER, NOT_ENOUGH_REPLICAS; REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND;
# TOPIC_AUTHORIZATION_FAILED is not tried again.
FAULTS: Final = st.tuples(*[st.sampled_from([0, 0, 6, 19, 7, 20, 29])] * PARTITIONS)
HEALTHY: Final = (0,) * PARTITIONS
STARTS: Final = st.sampled_from([None, (0, 0), (SEQUENCE_MASK - 3, 0), (7, EPOCH_MAX)])
LIMITS: Final = st.sampled_from([1 << 20, 1 << 20, HEADER_BYTES + 40])
SEALS: Final = st.lists(st.tuples(PLACES, st.integers(1, 4)), min_size=1, max_size=8)


class ExactlyOnce(RuleBasedStateMachine):
    """Steps of everybody, in any order, and what may go wrong between them."""

    direct = False

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()
        self.all: IdempotentBench
        self.batches = 0

    @initialize(start=STARTS, batch_bytes=LIMITS, seals=SEALS, well=st.integers(0, 4))
    def begin(self, start: tuple[int, int] | None, batch_bytes: int, seals: list[tuple[int, int]], well: int) -> None:
        bench = idempotent_bench(batch_bytes=batch_bytes, brokers=BROKERS, partitions=PARTITIONS, direct=self.direct)
        self.all = self._open.enter_context(bench)
        if start is not None:
            self.all.start_at(*start)
        self.seal(seals)
        self.go_well(well)

    def teardown(self) -> None:
        try:
            if self.batches:
                self.all.drain()
                # Whatever was, a healthy cluster takes what comes now.
                first_fresh = len(self.all.bench.sealed) + 1
                self.seal([(partition, 1) for partition in range(PARTITIONS)])
                self.all.drain()
                self.all.check(delivered_from=first_fresh)
        finally:
            self._open.close()

    @rule(seals=SEALS)
    def seal(self, seals: list[tuple[int, int]]) -> None:
        for partition, records in seals:
            self.batches += 1
            self.all.bench.seal([b"%d.%d" % (self.batches, place) for place in range(records)], partition)
            self.all.work()

    # The way of a request, step by step.

    @rule(times=TIMES)
    def send(self, times: int) -> None:
        for node in range(BROKERS):
            for _ in range(times):
                self.all.send(node)

    @rule(partition=PLACES, faults=FAULTS)
    def process(self, partition: int, faults: tuple[int, ...]) -> None:
        self.all.process(self.all.target(partition), faults)

    @rule(partition=PLACES, times=TIMES)
    def process_well(self, partition: int, times: int) -> None:
        for _ in range(times):
            self.all.process(self.all.target(partition), HEALTHY)

    @rule(partition=PLACES, times=TIMES)
    def hear(self, partition: int, times: int) -> None:
        for _ in range(times):
            self.all.hear(self.all.target(partition))
        self.all.work()

    @rule(rounds=st.integers(1, 3))
    def go_well(self, rounds: int) -> None:
        """The whole way, and nothing happens."""
        for _ in range(rounds):
            self.all.round_trip()

    # What may happen.

    @rule(
        seals=SEALS,
        partition=PLACES,
        well=st.integers(0, 8),
        faults=st.lists(FAULTS, max_size=8),
        heard=st.integers(0, 8),
        cut=st.none() | st.integers(0, 3),
        moved=st.none() | st.tuples(NODES, st.integers(0, 2), st.booleans()),
        after_a_day=st.sampled_from([False, False, True]),
        doomed=st.none() | st.integers(0, 40),
    )
    def go_ill(
        self,
        seals: list[tuple[int, int]],
        partition: int,
        well: int,
        faults: list[tuple[int, ...]],
        heard: int,
        cut: int | None,
        moved: tuple[int, int, bool] | None,
        after_a_day: bool,
        doomed: int | None,
    ) -> None:
        """Several requests go out; some are processed, some answers are heard, a connection or a leader is lost."""
        self.all.succeed()
        self.all.learn(partition, self.all.cluster.logs[partition].leader)
        if after_a_day:
            self.all.drain()
            self.all.a_day_passes()
        self.seal(seals)
        self.all.pass_time(30)
        if doomed is not None and self.all.network is not None:
            self.all.network.life.left = doomed
        self.send(8)
        node = self.all.target(partition)
        for each in [HEALTHY] * well + faults:
            self.all.process(node, each)
        for _ in range(heard):
            self.all.hear(node)
        if moved is not None:
            self.move(partition, *moved)
        if cut is not None:
            self.all.cut(node, cut)
        self.all.work()

    @rule(partition=PLACES, survive=st.integers(0, 3))
    def cut(self, partition: int, survive: int) -> None:
        self.all.cut(self.all.target(partition), survive)

    @precondition(lambda self: self.batches and self.all.cluster.zombies)
    @rule(which=st.integers(0, 5), faults=FAULTS)
    def zombie(self, which: int, faults: tuple[int, ...]) -> None:
        self.all.cluster.process_zombie(which % len(self.all.cluster.zombies), faults)

    @rule(partition=PLACES, leader=NODES, keep=st.integers(0, 3), heard=st.booleans())
    def move(self, partition: int, leader: int, keep: int, heard: bool) -> None:
        self.all.cluster.logs[partition].move(leader, keep)
        if heard:
            self.all.learn(partition, leader)

    @rule(partition=PLACES, lost=st.booleans())
    def learn(self, partition: int, lost: bool) -> None:
        self.all.learn(partition, None if lost else self.all.cluster.logs[partition].leader)

    @rule(milliseconds=st.sampled_from([1, 30, 150, 700]))
    def wait(self, milliseconds: int) -> None:
        self.all.pass_time(milliseconds)

    @precondition(lambda self: self.batches)
    @rule()
    def wait_until_one_expires(self) -> None:
        self.all.pass_time_until_one_expires()

    @precondition(lambda self: self.batches and not self.all.batches_under_way)
    @rule()
    def wait_for_a_day(self) -> None:
        self.all.a_day_passes()

    @precondition(lambda self: self.batches and self.all.network is not None)
    @rule(changes=st.integers(0, 40))
    def doom(self, changes: int) -> None:
        """The network process dies before one of its next stores, whatever it is doing then."""
        assert self.all.network is not None
        self.all.network.life.left = changes

    @precondition(lambda self: self.batches and self.all.network is None)
    @rule(changes=st.integers(0, 40) | st.just(1 << 60))
    def succeed(self, changes: int) -> None:
        self.all.succeed(changes)

    @invariant()
    def every_block_has_one_owner(self) -> None:
        if self.batches:
            self.all.bench.check_conservation(somebody_is_dead=self.all.network is None)


class ExactlyOnceFromSlabs(ExactlyOnce):
    """In a direct arena: what is on the wire, and sent again, are the slabs."""

    direct = True


ExactlyOnce.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
ExactlyOnceFromSlabs.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnceFromSlabs = ExactlyOnceFromSlabs.TestCase


# --- what the model is for, and what it leaves out ----------------------------------------------------------


class EagerQueue(PartitionQueue):
    """A queue that takes every leader for one that knows the sequences."""

    @property
    def known_until_ns(self) -> int:
        return 1 << 62

    @known_until_ns.setter
    def known_until_ns(self, time_ns: int) -> None:
        pass


@pytest.mark.inside
@pytest.mark.parametrize("eager", [False, True])
def test_two_at_once_to_a_leader_that_knows_nothing_would_change_their_order(
    monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    if eager:
        monkeypatch.setattr(batches, "PartitionQueue", EagerQueue)
    with idempotent_bench(partitions=PARTITIONS) as everybody:
        node = everybody.target(0)
        for value in (b"a", b"b"):
            everybody.bench.seal([value], 0)
        everybody.work()
        everybody.send(node)
        everybody.send(node)
        everybody.process(node, (19, 0))
        everybody.process(node, HEALTHY)
        everybody.cut(node, 0)
        everybody.drain()
        assert everybody.cluster.logs[0].values == ([b"b", b"a", b"b"] if eager else [b"a", b"b"])


@pytest.mark.inside
@pytest.mark.parametrize("limit", [5, 7])
def test_more_at_once_than_brokers_remember_would_append_them_twice(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(batches, "_IDEMPOTENT_IN_FLIGHT", limit)
    with idempotent_bench(partitions=PARTITIONS) as everybody:
        node = everybody.target(0)
        _seal(everybody, b"before")
        everybody.round_trip()
        values = [b"%d" % number for number in range(7)]
        for value in values:
            _seal(everybody, value)
        for action in (everybody.send, lambda node: everybody.process(node, HEALTHY)):
            for _ in values:
                action(node)
        everybody.cut(node, survive=0)
        everybody.drain()
        assert everybody.cluster.logs[0].values == [b"before", *values * (1 if limit == 5 else 2)]


def test_a_batch_that_fails_takes_no_sequence_from_one_before_it_that_may_be_in_the_log() -> None:
    """The first was appended, and said to have timed out; the second is refused for good before that was heard."""
    with idempotent_bench(partitions=PARTITIONS) as everybody:
        node = everybody.target(0)
        _seal(everybody, b"before")
        everybody.round_trip()
        _seal(everybody, b"appended")
        _seal(everybody, b"refused")
        everybody.send(node)
        everybody.send(node)
        everybody.process(node, (7, 0))
        everybody.process(node, (29, 0))
        everybody.drain()
        _seal(everybody, b"after it")
        everybody.drain()
        assert everybody.cluster.logs[0].values == [b"before", b"appended", b"after it"]


@pytest.mark.parametrize("fierce", [False, True])
def test_what_the_model_leaves_out_would_append_a_batch_twice(fierce: bool) -> None:
    """No producer that goes on after it has given up a batch, which the broker has yet to append, can prevent it."""
    with idempotent_bench(partitions=PARTITIONS, fierce=fierce) as everybody:
        node = everybody.target(0)
        _seal(everybody, b"before")
        everybody.round_trip()
        _seal(everybody, b"given up")
        everybody.pass_time(1000)
        _seal(everybody, b"after it")
        everybody.send(node)
        everybody.send(node)
        everybody.cut(node, survive=2)
        everybody.pass_time(1500)
        everybody.send(node)
        everybody.process(node, HEALTHY)  # OUT_OF_ORDER_SEQUENCE_NUMBER, and only now the zombies come
        everybody.drain()
        late = [b"given up", b"after it"] if fierce else []
        assert everybody.cluster.logs[0].values == [b"before", *late, b"after it"]


def _seal(everybody: IdempotentBench, value: bytes) -> None:
    everybody.bench.seal([value], 0)
    everybody.work()
