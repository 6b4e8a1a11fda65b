"""Splitting in the arena: the descriptor's fields, and how large the pieces are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slabpress._native import NONE
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors, Output, Result
from slabpress.shm.splits import Split, Splits
from tests.shm.kit import open_batch, small_arena

UNSPLIT: Final = Split(NONE, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def arena() -> Iterator[Arena]:
    with small_arena() as made:
        yield made


# --- the fields ---------------------------------------------------------------------------------------------


def test_a_batch_that_is_opened_is_whole_whatever_its_descriptor_was_before(arena: Arena) -> None:
    splits = Splits(arena)
    for _ in range(2):
        open_batch(arena, 3)
        assert splits.get(3) == UNSPLIT
        assert not splits.get(3).is_split
        splits.begin(3, 5, 300, 4, 10)
        splits.set_piece(3, 7, -123)
        assert splits.get(3).is_split
    assert splits.get(2).source == splits.get(4).source == 0, "a descriptor that was never opened is as it was made"


def test_the_refused_payload_becomes_the_source_and_the_slabs_are_forgotten(arena: Arena) -> None:
    splits, descriptors = Splits(arena), Descriptors(arena)
    open_batch(arena, 1)
    arena.memory.store_u32(arena.layout.descriptors + at.DESCRIPTOR_BYTES + at.FIRST_SLAB_AT, 6)
    splits.begin(1, 0, 4000, 3, 11)  # output buffer 0 is one like any other
    assert splits.get(1) == Split(0, 4000, 3, first=0, wanted=5, ceiling=11, refused_bytes=4000,
                                  piece_records=0, piece_max_timestamp_ms=0)  # fmt: skip
    assert descriptors.sealed(1).first_slab == NONE


def test_a_piece_that_is_too_large_is_halved_and_its_size_is_kept(arena: Arena) -> None:
    splits = Splits(arena)
    open_batch(arena, 0)
    splits.begin(0, 2, 4000, 1, 11)
    splits.set_piece(0, 5, 1 << 40)
    splits.halve(0, 5, 1900)
    assert splits.get(0) == Split(2, 4000, 1, 0, 2, 5, 1900, 5, 1 << 40)
    splits.halve(0, 2, 900)
    assert splits.get(0)[3:7] == (0, 1, 2, 900)


@pytest.mark.parametrize(
    ("ceiling", "piece", "delivered", "wanted"),
    [
        (20, 5, True, 10),
        (10, 5, True, 5),  # what was too large is not tried again
        (11, 5, True, 10),
        (20, 3, True, 6),
        (20, 1, False, 1),  # nothing is known of the others
        (2, 1, True, 1),
    ],
)
def test_the_next_piece_is_twice_as_large_after_a_success_but_below_what_was_too_large(
    arena: Arena, ceiling: int, piece: int, delivered: bool, wanted: int
) -> None:
    splits = Splits(arena)
    open_batch(arena, 0)
    splits.begin(0, 2, 4000, 1, 100)
    splits.halve(0, ceiling, 700)
    splits.set_piece(0, piece, 5)
    splits.go_on(0, delivered=delivered)
    found = splits.get(0)
    assert (found.first, found.wanted, found.refused_bytes) == (piece, wanted, 700)
    assert found.ceiling == (ceiling if delivered else 0xFFFF_FFFF)
    splits.go_on(0, delivered=delivered)
    assert splits.get(0) == found, "whoever takes over from a coordinator that died does it again"
    splits.set_piece(0, piece, 5)
    splits.go_on(0, delivered=delivered)
    assert splits.get(0).first == 2 * piece


def test_the_source_is_dropped_and_a_first_split_is_seen_by_all(arena: Arena) -> None:
    splits = Splits(arena)
    open_batch(arena, 0)
    assert not splits.any_ever()
    splits.begin(0, 2, 4000, 1, 100)
    assert splits.any_ever()
    splits.halve(0, 50, 1)
    assert arena.memory.load_u64(at.SPLITS_AT) == 2
    splits.drop_source(0)
    assert not splits.get(0).is_split
    assert splits.get(0).source_bytes == 4000
    assert splits.any_ever()


def test_the_fields_touch_nothing_of_the_descriptors_others(arena: Arena) -> None:
    splits, descriptors = Splits(arena), Descriptors(arena)
    open_batch(arena, 1)
    result = Result(7, 3, 1 << 40, 1 << 41, retriable=True, text="words")
    descriptors.set_result(1, result)
    descriptors.set_output(1, Output(4, 3, 2, 1))
    descriptors.header(1)[:] = header = bytes(range(at.BATCH_HEADER_BYTES))
    splits.begin(1, 0xFFFF_FFF0, 0xFFFF_FFFF, 4, 0xFFFF_FFFF)
    splits.set_piece(1, 0xFFFF_FFFF, -1)
    splits.halve(1, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert descriptors.result(1) == result
    assert descriptors.output(1) == Output(4, 3, 2, 1)
    assert bytes(descriptors.header(1)) == header
    assert splits.get(1)[-3:] == (0xFFFF_FFFF, -1, 0)


# --- how large the pieces are ---------------------------------------------------------------------------------


class Course(NamedTuple):
    """What became of a batch: (first, records, delivered) of each piece with a result, and how many were refused."""

    ends: list[tuple[int, int, bool]]
    refusals: int


def split(arena: Arena, records: int, fits: Callable[[int, int], bool]) -> Course:
    """Split a batch to its end, where ``fits`` says whether so many records from a first one do."""
    splits, ends, refusals = Splits(arena), [], 1
    open_batch(arena, 0)
    splits.begin(0, 0, 100, 0, records)
    first = 0
    while first < records:
        course = splits.get(0)
        assert course.first == first
        assert 1 <= course.wanted < course.ceiling
        piece = min(course.wanted, records - first)
        splits.set_piece(0, piece, 0)
        delivered = fits(first, piece)
        if not delivered and piece > 1:
            refusals += 1
            splits.halve(0, piece, 1)
            continue
        ends.append((first, piece, delivered))
        first += piece
        if first < records:
            splits.go_on(0, delivered=delivered)
    return Course(ends, refusals)


def check_bounds(records: int, course: Course) -> None:
    """Consecutive pieces, each record once; between two records that fail alone, few refusals."""
    assert [first for first, _, _ in course.ends] == [sum(end[1] for end in course.ends[:n])
                                                      for n in range(len(course.ends))]  # fmt: skip
    assert sum(piece for _, piece, _ in course.ends) == records
    failures = [piece for _, piece, delivered in course.ends if not delivered]
    assert set(failures) <= {1}
    # Each refusal lowers the ceiling; it is tried to just below it once and halved again, until it is 2.
    assert course.refusals <= (len(failures) + 1) * (2 * math.ceil(math.log2(records)) + 1)


@given(
    sizes=st.lists(st.integers(1, 100) | st.integers(1, 10_000), min_size=2, max_size=200),
    limit=st.integers(1, 20_000),
    decay=st.booleans(),
)
@example(sizes=[1] * 1000 + [10_000] + [1] * 1000, limit=500, decay=False)
def test_every_record_has_one_result_whatever_fits(sizes: list[int], limit: int, decay: bool) -> None:
    """The limit may shrink meanwhile: a topic's configuration changes at run time."""
    limits = [limit]

    def fits(first: int, count: int) -> bool:
        if decay:
            limits[0] -= 1
        return sum(sizes[first : first + count]) <= limits[0]

    with small_arena() as arena:
        course = split(arena, len(sizes), fits)
    check_bounds(len(sizes), course)
    if not decay:
        assert {first for first, _, delivered in course.ends if not delivered} == {
            place for place, size in enumerate(sizes) if size > limit
        }


@given(answers=st.lists(st.booleans(), max_size=600), records=st.integers(2, 300))
def test_every_record_has_one_result_whatever_is_answered(answers: list[bool], records: int) -> None:
    left = iter(answers)
    with small_arena() as arena:
        check_bounds(records, split(arena, records, lambda _first, _count: next(left, False)))


@given(records=st.integers(2, 3000), fit=st.integers(1, 3000))
def test_records_of_one_size_go_in_pieces_of_at_least_half_of_what_fits(records: int, fit: int) -> None:
    with small_arena() as arena:
        course = split(arena, records, lambda _first, count: count <= fit)
    check_bounds(records, course)
    assert all(delivered for _, _, delivered in course.ends)
    assert all(piece >= min(fit, records) / 2 - 1 for _, piece, _ in course.ends[:-1])
    assert len(course.ends) <= 2 * math.ceil(records / fit) + math.log2(records) + 2
    assert course.refusals <= 2 * math.log2(records) + 1


@pytest.mark.parametrize("place", [0, 1, 499, 500, 998, 999])
def test_one_large_record_among_small_ones_costs_little(arena: Arena, place: int) -> None:
    def fits(first: int, count: int) -> bool:
        return not first <= place < first + count

    course = split(arena, 1000, fits)
    check_bounds(1000, course)
    assert [(first, piece) for first, piece, delivered in course.ends if not delivered] == [(place, 1)]
    assert course.refusals <= 2 * math.log2(1000)
    assert len(course.ends) <= 3 * math.log2(1000)
