"""The count itself: it finds what it is for."""

from __future__ import annotations

import pytest

from tests.integration.deaths.records import Counts, count, value_of
from tests.support.kafka import Record


def log(*numbers: int, sender: str = "a", partition: int = 0) -> list[Record]:
    values = [value_of(sender, partition, number, b"a b c") for number in numbers]
    return [Record(partition, offset, None, value, (), 0) for offset, value in enumerate(values)]


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([0, 1, 2], Counts(3, lost=0, doubled=0, reordered=0)),
        ([0, 2], Counts(2, lost=1, doubled=0, reordered=0)),
        ([0, 1, 1, 2], Counts(3, lost=0, doubled=1, reordered=0)),
        ([0, 1, 2, 0, 1], Counts(3, lost=0, doubled=2, reordered=0)),
        ([1, 0, 2], Counts(3, lost=0, doubled=0, reordered=1)),
        ([2, 0, 1], Counts(3, lost=0, doubled=0, reordered=2)),
        ([], Counts(0, lost=3, doubled=0, reordered=0)),
    ],
)
def test_what_is_lost_doubled_and_reordered_is_counted(numbers: list[int], found: Counts) -> None:
    assert count(log(*numbers), {"a": 3}) == found


def test_a_record_whose_send_never_returned_may_be_there_once() -> None:
    assert count(log(0, 1), {"a": 1}, {"a": 2}) == Counts(2, lost=0, doubled=0, reordered=0)
    assert count(log(0), {"a": 1}, {"a": 2}) == Counts(1, lost=0, doubled=0, reordered=0)
    assert count(log(0, 1, 1), {"a": 1}, {"a": 2}) == Counts(2, lost=0, doubled=1, reordered=0)


def test_order_is_that_of_one_sender_in_one_partition() -> None:
    both = [*log(1, 3, partition=1), *log(0, 2), *log(0, 1, sender="b")]
    assert count(both, {"a": 4, "b": 2}) == Counts(6, lost=0, doubled=0, reordered=0)


def test_a_record_that_nobody_has_sent_is_told_of() -> None:
    with pytest.raises(AssertionError, match="was never sent"):
        count(log(3), {"a": 3})
