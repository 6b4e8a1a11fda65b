"""Sequences: given once, kept through retries and deaths, never given again within an epoch; against a model broker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.network.sequences import EPOCH_MAX, SEQUENCE_MASK, Identity, Sequences
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.topics import TopicTable
from tests.shm.faults import Killed, Life, mortal
from tests.shm.kit import small_arena

PRODUCER = 7
NONE_DUPLICATE, NONE, OUT_OF_ORDER, STALE_EPOCH = "duplicate", "appended", "out of order", "stale epoch"


class ModelBroker:
    """What a broker keeps of one producer and topic-partition (ProducerStateEntry): the last five batches."""

    def __init__(self) -> None:
        self.epoch = -1
        self.next: int | None = None
        self.known: deque[tuple[int, int]] = deque(maxlen=5)
        self.log: list[int] = []

    def append(self, sent: Identity, records: int, batch: int) -> str:
        """Append a batch as a broker would; what it answers."""
        last = (sent.sequence + records - 1) & SEQUENCE_MASK
        if sent.epoch < self.epoch:
            return STALE_EPOCH
        if sent.epoch == self.epoch and (sent.sequence, last) in self.known:
            return NONE_DUPLICATE
        if sent.epoch > self.epoch:
            if sent.sequence != 0:
                return OUT_OF_ORDER
            self.known.clear()
        elif self.next is not None and sent.sequence != self.next:
            return OUT_OF_ORDER
        self.epoch, self.next = sent.epoch, (last + 1) & SEQUENCE_MASK
        self.known.append((sent.sequence, last))
        self.log.append(batch)
        return NONE


@pytest.fixture
def arena() -> Iterator[Arena]:
    with small_arena(batches=16) as made:
        descriptors, topics = Descriptors(made), TopicTable(made)
        for index in range(16):
            descriptors.open(index, 0, 0)
        for partition in range(4):
            topics.set_partition(partition, 0, partition)
        yield made


def _start_at(arena: Arena, sequence: int, epoch: int = 0) -> None:
    start = arena.layout.partitions + at.PRODUCER_ID_AT
    arena.memory.store_u64(start, PRODUCER)
    arena.memory.store_u64(arena.layout.partitions + at.PRODUCER_EPOCH_AT, sequence << 32 | epoch)


def test_there_is_no_sequence_before_there_is_a_producer_id(arena: Arena) -> None:
    sequences = Sequences(arena)
    assert sequences.assign(0, 0, 0, 10) is None
    sequences.set_producer_id(0)
    assert sequences.producer_id == 0
    assert sequences.assign(0, 0, 0, 10) == Identity(0, 0, 0)


def test_batches_are_numbered_one_after_the_other_and_keep_their_numbers(arena: Arena) -> None:
    sequences = Sequences(arena)
    sequences.set_producer_id(PRODUCER)
    given_first = [sequences.assign(index, 0, 0, 10 + index) for index in range(3)]
    assert given_first == [Identity(PRODUCER, 0, 0), Identity(PRODUCER, 0, 10), Identity(PRODUCER, 0, 21)]
    assert [sequences.assign(index, 0, 0, 10 + index) for index in range(3)] == given_first
    assert [Sequences(arena).assign(index, 0, 0, 10 + index) for index in range(3)] == given_first
    assert sequences.assign(3, 1, 0, 5) == Identity(PRODUCER, 0, 0), "each topic-partition has its own"


def test_after_the_last_sequence_comes_0(arena: Arena) -> None:
    _start_at(arena, SEQUENCE_MASK - 4)
    sequences = Sequences(arena)
    sequences.set_producer_id(PRODUCER)
    found = [sequences.assign(index, 0, 0, 3) for index in range(3)]
    assert [identity.sequence for identity in found if identity] == [SEQUENCE_MASK - 4, SEQUENCE_MASK - 1, 1]


def test_a_partition_that_begins_anew_numbers_its_batches_from_0_in_the_next_epoch(arena: Arena) -> None:
    sequences = Sequences(arena)
    sequences.set_producer_id(PRODUCER)
    for index in range(3):
        sequences.assign(index, 0, 0, 10)
    sequences.assign(5, 1, 0, 10)
    sequences.begin_anew(0)
    assert sequences.assigned(1, 0) is None
    assert sequences.assign(1, 0, 0, 10) == Identity(PRODUCER, 1, 0)
    assert sequences.assign(2, 0, 0, 10) == Identity(PRODUCER, 1, 10)
    assert sequences.assign(5, 1, 0, 10) == Identity(PRODUCER, 0, 0), "the others keep their epoch"


def test_pieces_of_a_batch_have_the_sequences_of_their_records(arena: Arena) -> None:
    sequences = Sequences(arena)
    sequences.set_producer_id(PRODUCER)
    sequences.assign(0, 0, 0, 100)
    assert sequences.assign(1, 0, 0, 10) == Identity(PRODUCER, 0, 100)
    assert sequences.assign(0, 0, 60, 100) == Identity(PRODUCER, 0, 60)
    sequences.begin_anew(0)  # record 60 alone was too large: the broker misses its sequence
    assert sequences.assign(0, 0, 61, 100) == Identity(PRODUCER, 1, 0)
    assert sequences.assign(0, 0, 70, 100) == Identity(PRODUCER, 1, 9)
    assert sequences.assign(1, 0, 0, 10) == Identity(PRODUCER, 1, 39)


def test_after_the_last_epoch_a_new_producer_id_is_asked_for(arena: Arena) -> None:
    _start_at(arena, 50, EPOCH_MAX)
    sequences = Sequences(arena)
    sequences.set_producer_id(PRODUCER)
    assert sequences.assign(0, 0, 0, 10) == Identity(PRODUCER, EPOCH_MAX, 50)
    sequences.begin_anew(0)
    assert Sequences(arena).producer_id is None
    assert sequences.assign(0, 0, 0, 10) is None
    sequences.set_producer_id(PRODUCER + 1)
    assert sequences.assign(0, 0, 0, 10) == Identity(PRODUCER + 1, 0, 0)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("anew", [False, True])
def test_a_death_at_any_store_gives_no_sequence_twice_and_leaves_no_gap(first: int, anew: bool) -> None:
    deaths = 0
    while True:
        with small_arena(batches=16) as arena:
            descriptors = Descriptors(arena)
            for index in range(3):
                descriptors.open(index, 0, 0)
            TopicTable(arena).set_partition(0, 0, 0)
            before = Sequences(arena)
            before.set_producer_id(PRODUCER)
            assert before.assign(0, 0, 0, 10) == Identity(PRODUCER, 0, 0)
            life = Life(deaths)
            dying = Sequences(mortal(arena, life))
            try:
                if anew:
                    dying.begin_anew(0)
                dying.assign(1, 0, first, 10)
                ended = True
            except Killed:
                ended = False
            heir = Sequences(arena)
            for index in range(3):
                heir.mend(index, 0, first if index == 1 else 0, 10)
            one, two = heir.assign(1, 0, first, 10), heir.assign(2, 0, 0, 10)
            assert one is not None
            assert two is not None
            epoch = one.epoch
            assert epoch in ({0, 1} if anew else {0})
            assert one == Identity(PRODUCER, epoch, 0 if epoch else 10)
            assert two == Identity(PRODUCER, epoch, one.sequence + 10 - first)
        if ended:
            return
        deaths += 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30), st.integers(0, 8))
def test_whatever_is_lost_or_fails_the_log_has_every_batch_at_most_once_and_in_order(
    steps: list[tuple[int, int]], wrap_after: int
) -> None:
    """One batch at a time: 0 it is appended, 1 its answer is lost, 2 it is lost, 3 another after it is never sent."""
    with small_arena(batches=64) as arena:
        _start_at(arena, (SEQUENCE_MASK - wrap_after) & SEQUENCE_MASK)
        TopicTable(arena).set_partition(1, 0, 1)
        sequences, broker, descriptors = Sequences(arena), ModelBroker(), Descriptors(arena)
        sequences.set_producer_id(PRODUCER)
        for number, (what, records) in enumerate(steps):
            descriptors.open(number, 0, 0)
            answered = False
            while not answered:
                sent = sequences.assign(number, 0, 0, records)
                assert sent is not None
                if what == 2:
                    what = 0
                    continue  # the request never came there, and is tried again
                said = broker.append(sent, records, number)
                if said == OUT_OF_ORDER:
                    sequences.begin_anew(0)
                    continue
                assert said in (NONE, NONE_DUPLICATE)
                if what == 1:
                    what = 0
                    continue  # its answer is lost, and it is tried again
                answered = True
            if what == 3:
                # The next one expires before it is sent a second time: a gap that nobody fills.
                descriptors.open(32 + number % 32, 0, 0)
                sequences.assign(32 + number % 32, 0, 0, records)
        assert broker.log == list(range(len(steps)))
