"""What becomes of a batch, and the words for it."""

from __future__ import annotations

import pytest

from slabpress.network import outcomes
from slabpress.network.wire import ProduceResult
from slabpress.results import EXPIRED_SENT, EXPIRED_UNSENT
from slabpress.shm.layout import TEXT_BYTES


def result(error: int, records: list[tuple[int, str]] | None = None, message: str = "") -> ProduceResult:
    return ProduceResult("t", 0, error, 12, 99, records or [], message, -1, -1)


@pytest.mark.parametrize("code", [2, 3, 5, 6, 7, 13, 19, 20, 56, 74, 75, 100])
def test_retriable(code: int) -> None:
    assert outcomes.may_retry(result(code))
    assert not outcomes.is_delivered(result(code))


@pytest.mark.parametrize("code", [-1, 10, 17, 18, 21, 29, 32, 45, 47, 76, 87])
def test_final(code: int) -> None:
    assert not outcomes.may_retry(result(code))
    outcome = outcomes.refused(result(code), 1000, 3)
    assert outcome.code == code
    name, _, words = outcome.text.partition(": ")
    assert name.isupper()
    assert words


def test_delivered_carries_offset_and_time() -> None:
    outcome = outcomes.delivered(result(0))
    assert (outcome.code, outcome.base_offset, outcome.append_time_ms) == (0, 12, 99)


def test_a_duplicate_is_a_success() -> None:
    assert outcomes.is_delivered(result(46))
    assert outcomes.delivered(result(46)).code == 0


def test_record_errors_fall_back_to_the_batch_message() -> None:
    outcome = outcomes.refused(result(87, [(4, "")], "no key"), 1000, 9)
    assert outcome.text == "INVALID_RECORD: record 4 of 9: no key"
    assert outcome.record_index == 4


def test_stale_metadata_is_retriable() -> None:
    assert all(outcomes.may_retry(result(code)) for code in outcomes.STALE_METADATA)


def test_expired_says_whether_it_was_tried() -> None:
    assert outcomes.expired(0, 500, "why").code == EXPIRED_UNSENT
    tried = outcomes.expired(3, 500, "why")
    assert tried.code == EXPIRED_SENT
    assert tried.text == "DELIVERY_TIMEOUT_AFTER_SEND: not acknowledged within 500 ms, 3 tries; why"


def test_the_numbers_of_a_batch_that_is_too_large_fit_into_the_text() -> None:
    text = outcomes.refused(result(10), 2**31 - 1, 2**31 - 1).text
    assert len(text.encode()) <= TEXT_BYTES
    assert str(2**31 - 1) in text
