"""What a program sees of a split batch: each record's own offset or error, callbacks, counts, and flush."""

from __future__ import annotations

import random
import threading

import pytest

from slabpress._native import DeliveryHandle
from slabpress.errors import DeliveryError, FlushTimeoutError
from tests.pipeline.instant import WATCHDOG_S, until
from tests.pipeline.splitting import LIMIT, LimitedRig, check_counts, flush_failing, resolved
from tests.support.limited_broker import HEADER_BYTES
from tests.support.split_bench import numbered

# A record has at most so many bytes beside its value.
OVERHEAD = 12


def records(seed: int, count: int = 60) -> list[bytes]:
    """Values that fit, and some that do not even alone."""
    rng = random.Random(seed)
    sizes = [rng.choice((5, 20, 90, 300 if rng.random() < 0.2 else 60)) for _ in range(count)]
    return [b"%d:" % place + b"x" * size for place, size in enumerate(sizes)]


def fits(value: bytes | None) -> bool:
    return value is not None and len(value) + OVERHEAD <= LIMIT - HEADER_BYTES


def check_handles(rig: LimitedRig, handles: list[DeliveryHandle], values: list[bytes]) -> int:
    """Each handle says where its record is, or that it was too large; how many were."""
    log = rig.broker.values()
    for handle, value in zip(handles, values, strict=True):
        if fits(value):
            delivery = handle.result(WATCHDOG_S)
            assert (delivery.topic, delivery.partition, delivery.append_time_ms) == ("t", 0, None)
            assert delivery.offset is not None
            assert log[delivery.offset] == value
        else:
            error = handle.exception(WATCHDOG_S)
            assert isinstance(error, DeliveryError)
            assert (error.name, error.code, error.retriable) == ("MESSAGE_TOO_LARGE", 10, False)
            assert "a single record makes a batch of" in str(error)
    assert log == [value for value in values if fits(value)]
    return sum(not fits(value) for value in values)


# --- handles and counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_each_record_of_split_batches_has_its_own_offset_or_error(seed: int) -> None:
    values = records(seed)
    with LimitedRig(LIMIT) as rig:
        handles = [rig.send("t", value) for value in values]
        assert flush_failing(rig) == sum(not fits(value) for value in values)
        assert rig.broker.arrivals[0].error
        failed = check_handles(rig, handles, values)
        check_counts(rig, len(values), failed)


def test_no_record_is_resolved_before_all_pieces_are_and_flush_waits_for_them() -> None:
    values = numbered(8, 100)
    with LimitedRig(LIMIT) as rig:
        handles = [rig.send("t", value) for value in values]
        rig.pipeline.stop_after = 4  # the whole, its first half, and two pieces that fit
        with pytest.raises(FlushTimeoutError):
            rig.producer.flush(0)
        until(lambda: resolved(handles) == 4)
        assert not any(handle.done() for handle in handles)
        assert repr(handles[0]) == "<DeliveryHandle t-0 pending>"
        assert rig.pending() == rig.producer.stats().records_pending == 8
        with pytest.raises(FlushTimeoutError):
            rig.producer.flush(0)
        flushed = threading.Event()

        def flush() -> None:
            rig.flush()
            flushed.set()

        thread = threading.Thread(target=flush)
        thread.start()
        assert not flushed.is_set()
        rig.pipeline.stop_after = 1 << 60
        rig.thread.resume()
        thread.join(WATCHDOG_S)
        assert flushed.is_set()
        assert all(handle.done() for handle in handles)
        assert check_handles(rig, handles, values) == 0
        check_counts(rig, 8, 0)


def test_a_flush_raises_exactly_those_failures_that_nobody_looked_at() -> None:
    values = [b"%d" % number + b"y" * (300 if number % 3 == 0 else 10) for number in range(30)]
    with LimitedRig(LIMIT) as rig:
        handles = [rig.send("t", value) for value in values]
        rig.session.flush(WATCHDOG_S)
        for handle in (*handles[:9], *handles[:9]):
            handle.exception()
        with pytest.raises(DeliveryError) as caught:
            rig.flush()
        assert (caught.value.records, caught.value.name) == (7, "MESSAGE_TOO_LARGE")
        assert str(caught.value).startswith("7 records were not delivered; the first error: ")
        rig.flush()
        check_counts(rig, 30, 10)


def test_accepted_is_delivered_and_failed_and_pending_at_any_time() -> None:
    values = records(3, 400)
    with LimitedRig(LIMIT, linger_ms=0) as rig:
        for value in values:
            rig.send("t", value)
            stats = rig.producer.stats()
            parts = stats.records_delivered, stats.records_failed, stats.records_pending
            assert sum(parts) == stats.records_accepted
            assert min(parts) >= 0
            for table in (stats.batches, stats.slabs, stats.output_buffers):
                assert min(table.values()) >= 0
        failed = flush_failing(rig)
        assert failed == sum(not fits(value) for value in values)
        check_counts(rig, 400, failed)


# --- callbacks ----------------------------------------------------------------------------------------------


def test_callbacks_run_once_each_in_order_with_each_records_own_result() -> None:
    values = records(5)
    calls: list[tuple[int, bool]] = []
    own: list[int] = []

    def outcome(handle: DeliveryHandle) -> bool:
        return handle.exception(0) is None

    with LimitedRig(LIMIT, on_delivery=lambda handle: calls.append((handle._index, outcome(handle)))) as rig:
        first = rig.send("t", values[0], on_delivery=lambda handle: own.append(handle._index))
        batches = [first._batch, *(rig.send("t", value)._batch for value in values[1:])]
        rig.flush()  # whoever was called back has looked at it
        sizes = [batches.count(batch) for batch in dict.fromkeys(batches)]
        assert [index for index, _ in calls] == [index for size in sizes for index in range(size)]
        assert [good for _, good in calls] == [fits(value) for value in values]
        assert own == [0]
        check_counts(rig, len(values), sum(not fits(value) for value in values))


def test_failures_that_on_delivery_was_told_of_are_not_told_again() -> None:
    told: list[int] = []
    with LimitedRig(HEADER_BYTES, on_delivery=lambda handle: told.append(handle._index)) as rig:
        rig.send_many("t", numbered(10, 20))
        rig.flush()
        assert told == list(range(10))
        check_counts(rig, 10, 10)


# --- many ---------------------------------------------------------------------------------------------------


def test_a_promise_for_many_names_the_failures_of_its_records_and_hides_no_others() -> None:
    values = records(6, 200)
    failed = sum(not fits(value) for value in values)
    with LimitedRig(LIMIT) as rig:
        many = rig.send_many("t", values)
        rig.session.flush(WATCHDOG_S)
        assert many.done()
        errors = many.exceptions(WATCHDOG_S)
        assert {getattr(error, "name", "") for error in errors} == {"MESSAGE_TOO_LARGE"}
        with pytest.raises(DeliveryError, match="a single record makes a batch"):
            many.result(WATCHDOG_S)
        rig.send("t", b"z" * 500)
        assert flush_failing(rig) == 1, "those of the promise were looked at"
        check_counts(rig, 201, failed + 1)
        good = rig.send_many("t", numbered(100, 50))
        rig.flush()
        assert (good.result(0), good.exceptions(0)) == (100, [])


def test_the_errors_of_a_promise_speak_of_every_record_that_failed() -> None:
    with LimitedRig(LIMIT) as rig:
        many = rig.send_many("t", numbered(10, 300))
        rig.session.flush(WATCHDOG_S)
        errors = many.exceptions(WATCHDOG_S)
        assert sum(getattr(error, "records", 0) for error in errors) == 10


def test_a_promise_does_not_fail_with_a_record_of_somebody_else_in_its_batch() -> None:
    with LimitedRig(LIMIT) as rig:
        before = rig.send("t", b"y" * 300)
        many = rig.send_many("t", numbered(3, 20))
        after = rig.send("t", b"y" * 300)
        rig.session.flush(WATCHDOG_S)
        assert many.exceptions(WATCHDOG_S) == []
        assert many.result(WATCHDOG_S) == 3
        assert flush_failing(rig) == 2
        assert before.exception(0) is not None
        assert after.exception(0) is not None
