"""Handles, callbacks, and failures that nobody has looked at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from slabpress._native import DeliveryHandle, Memory, Sleeper
from slabpress.errors import DeliveryError, DeliveryTimeoutError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.pipeline.outcomes import Delivery, Outcome
from slabpress.pipeline.reporter import Reporter, outcome_of
from slabpress.pipeline.topics import Topic
from slabpress.pipeline.watch import DoneCallback, Watch
from slabpress.results import EXPIRED_SENT, EXPIRED_UNSENT, PROTOCOL
from slabpress.shm.descriptors import Result
from tests.pipeline.instant import WATCHDOG_S, Rig, until
from tests.shm.kit import make_writer, small_arena


class _NoResults:
    """Nothing comes but what the test resolves."""

    def has_results(self) -> bool:
        return False

    def take_or_tell(self) -> None:
        pass


def _reporter(watch: Watch, on_delivery: DoneCallback | None, released: list[Batch]) -> Reporter:
    return Reporter(watch, on_delivery, released.extend, _NoResults(), Sleeper(Memory(bytearray(64)), 0))


class _Desk:
    """A reporter with batches of a few records, and what it released."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.released: list[Batch] = []
        self.reporter = _reporter(self.watch, None, self.released)
        self.topic = Topic("t", 0)

    def batch(self, records: int = 3, partition: int = 1) -> Batch:
        made = Batch(0, partition, self.topic, 0, self.watch)
        with small_arena() as arena:
            writer = make_writer(arena)
            for _ in range(records):
                writer.append(made, None, None, None, 0)
        return made

    def deliver(self, batch: Batch, offset: int = 100, append_time_ms: int = -1) -> None:
        self.reporter.resolve([(batch, Outcome(None, offset, append_time_ms))])

    def fail(self, batch: Batch, text: str = "NAME: words") -> DeliveryError:
        outcome = outcome_of(batch, Result(87, -1, -1, -1, retriable=False, text=text), batch.records)
        self.reporter.resolve([(batch, outcome)])
        assert isinstance(outcome.error, DeliveryError)
        return outcome.error


@pytest.fixture
def desk() -> Iterator[_Desk]:
    made = _Desk()
    yield made
    assert made.reporter.stop(WATCHDOG_S)


def test_a_delivered_record_knows_its_place(desk: _Desk) -> None:
    batch = desk.batch()
    handles = [DeliveryHandle(batch, index) for index in range(3)]
    assert not any(handle.done() for handle in handles)
    assert repr(handles[0]) == "<DeliveryHandle t-1 pending>"
    desk.deliver(batch, 100, 777)
    assert [handle.result() for handle in handles] == [Delivery("t", 1, 100 + n, 777) for n in range(3)]
    assert all(handle.done() and handle.exception() is None for handle in handles)
    assert repr(handles[0]) == "<DeliveryHandle t-1 delivered>"
    assert batch.finished
    assert desk.released == [batch]


def test_without_acknowledgement_there_is_no_offset_and_no_time(desk: _Desk) -> None:
    batch = desk.batch()
    desk.deliver(batch, -1)
    assert DeliveryHandle(batch, 2).result() == Delivery("t", 1, None, None)


def test_an_unresolved_record_times_out_and_says_which(desk: _Desk) -> None:
    batch = desk.batch()
    for wait in (DeliveryHandle(batch, 0).result, DeliveryHandle(batch, 0).exception):
        with pytest.raises(TimeoutError) as caught:
            wait(0.001)
        assert str(caught.value) == "record for t-1 not resolved within 0.001 s"
    with pytest.raises(TimeoutError, match="5 records not resolved within 0 s"):
        ManyDelivery(5, [batch]).result(0)
    desk.deliver(batch)


def test_a_waiting_thread_is_woken_by_the_result(desk: _Desk) -> None:
    batch, found = desk.batch(), []
    # Without a timeout: a wait that is over looks once more by itself.
    thread = threading.Thread(target=lambda: found.append(DeliveryHandle(batch, 0).result()), daemon=True)
    thread.start()
    until(lambda: desk.watch.waiting == 1)
    desk.deliver(batch)
    thread.join(WATCHDOG_S)
    assert found == [Delivery("t", 1, 100, None)]


def test_a_failed_record_raises_what_the_broker_said(desk: _Desk) -> None:
    batch = desk.batch()
    error = desk.fail(batch)
    handle = DeliveryHandle(batch, 0)
    assert handle.exception() is error
    with pytest.raises(DeliveryError) as caught:
        handle.result()
    assert str(caught.value) == "3 records for t-1 were not delivered: NAME: words"
    assert (error.topic, error.partition, error.name, error.code) == ("t", 1, "NAME", 87)
    assert (error.retriable, error.records) == (False, 3)


@pytest.mark.parametrize(
    ("result", "kind", "name", "code", "text"),
    [
        (Result(87, 1, 0, 0, False, "INVALID_RECORD: bad"), DeliveryError, "INVALID_RECORD", 87,
         "INVALID_RECORD: bad (record 1 of the batch's 3 is at fault)"),
        (Result(42, -1, 0, 0, True, ""), DeliveryError, "ERROR_42", 42, "ERROR_42"),
        (Result(-1, -1, 0, 0, True, "UNKNOWN_SERVER_ERROR: x"), DeliveryError, "UNKNOWN_SERVER_ERROR", -1,
         "UNKNOWN_SERVER_ERROR: x"),
        (Result(EXPIRED_UNSENT, -1, 0, 0, True, ""), DeliveryTimeoutError, "DELIVERY_TIMEOUT", None,
         "DELIVERY_TIMEOUT"),
        (Result(EXPIRED_SENT, -1, 0, 0, True, "late"), DeliveryTimeoutError, "DELIVERY_TIMEOUT_AFTER_SEND", None,
         "late"),
        (Result(PROTOCOL, -1, 0, 0, False, "what?"), DeliveryError, "PROTOCOL_ERROR", None, "what?"),
    ],
)  # fmt: skip
def test_every_result_has_its_error(
    desk: _Desk, result: Result, kind: type[DeliveryError], name: str, code: int | None, text: str
) -> None:
    outcome = outcome_of(desk.batch(), result, 3)
    error = outcome.error
    assert type(error) is kind
    assert (error.name, error.code, error.retriable) == (name, code, result.retriable)
    assert str(error) == f"3 records for t-1 were not delivered: {text}"
    assert outcome.base_offset == -1


# --- callbacks ----------------------------------------------------------------------------------------------


def test_callbacks_run_once_each_on_one_other_thread_with_the_handle(desk: _Desk) -> None:
    batch, calls = desk.batch(), []
    for index in (0, 2, 2):
        DeliveryHandle(batch, index).add_done_callback(
            lambda handle: calls.append((handle.result().offset, threading.current_thread().name))
        )
    desk.deliver(batch)
    assert desk.reporter.stop(WATCHDOG_S)
    assert calls == [(offset, "slabpress-callbacks") for offset in (100, 102, 102)]
    assert batch.finished


def test_a_descriptor_is_kept_until_the_last_callback_has_returned(desk: _Desk) -> None:
    batch, quiet = desk.batch(), desk.batch()
    entered, leave = threading.Event(), threading.Event()

    def slow(handle: DeliveryHandle) -> None:
        entered.set()
        assert leave.wait(WATCHDOG_S)

    DeliveryHandle(batch, 0).add_done_callback(slow)
    desk.reporter.resolve([(batch, Outcome(None, 1, -1)), (quiet, Outcome(None, 1, -1))])
    assert entered.wait(WATCHDOG_S)
    assert (batch.finished, quiet.finished, desk.released) == (False, True, [quiet])
    assert DeliveryHandle(batch, 0).done(), "handles do not wait for callbacks"
    leave.set()
    assert desk.reporter.stop(WATCHDOG_S)
    assert (batch.finished, desk.released) == (True, [quiet, batch])


def test_a_callback_for_a_resolved_record_runs_at_once_in_the_callers_thread(desk: _Desk) -> None:
    batch, threads = desk.batch(), []
    desk.deliver(batch)
    DeliveryHandle(batch, 0).add_done_callback(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_what_a_callback_raises_is_logged_and_hurts_nothing(desk: _Desk, caplog: pytest.LogCaptureFixture) -> None:
    batch = desk.batch()
    calls: list[DeliveryHandle] = []

    def fail(handle: DeliveryHandle) -> None:
        raise LookupError("mine")

    DeliveryHandle(batch, 0).add_done_callback(fail)
    DeliveryHandle(batch, 1).add_done_callback(calls.append)
    with caplog.at_level(logging.ERROR, "slabpress"):
        desk.deliver(batch)
        assert desk.reporter.stop(WATCHDOG_S)
        fail_later = DeliveryHandle(batch, 2)
        fail_later.add_done_callback(fail)
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == ["a delivery callback raised"] * 2
    assert batch.finished


def test_on_delivery_gets_every_record_of_every_batch_in_order() -> None:
    watch, calls = Watch(), []
    reporter = _reporter(watch, lambda handle: calls.append((handle.result().offset, reporter.in_callback())), [])
    desk = _Desk()
    desk.watch, desk.reporter = watch, reporter
    for offset in (100, 200):
        desk.deliver(desk.batch(), offset)
    assert reporter.stop(WATCHDOG_S)
    assert calls == [(offset + index, True) for offset in (100, 200) for index in range(3)]
    assert not reporter.in_callback()


def test_one_callback_for_many_records_takes_one_note(desk: _Desk) -> None:
    batch, calls = desk.batch(100), []

    def ask(callback: Callable[[DeliveryHandle], object], *indices: int) -> None:
        for index in indices:
            DeliveryHandle(batch, index).add_done_callback(callback)

    def same(handle: DeliveryHandle) -> None:
        calls.append(handle._index)

    ask(same, *range(90), 95, 96)
    assert batch.callbacks_asked == 2
    for index in range(96, 100):
        ask(lambda handle: calls.append(1000 + handle._index), index)
    ask(same, 97)
    assert batch.callbacks_asked == 7
    desk.deliver(batch)
    assert desk.reporter.stop(WATCHDOG_S)
    assert calls == [*range(90), 95, 96, 1096, 1097, 1098, 1099, 97]
    assert batch.callbacks_asked == 0


@pytest.mark.parametrize("same", [False, True])
def test_every_record_has_its_callback_run_once_whenever_it_is_delivered(same: bool) -> None:
    """While it is sent, its batch may be sealed, delivered, and its callbacks may run."""
    calls: list[tuple[int | None, str]] = []

    def note(handle: DeliveryHandle) -> None:
        calls.append((handle.result().offset, threading.current_thread().name))

    with Rig({"t": 1}) as rig:
        for _ in range(3000):
            rig.send("t", b"v" * 20, on_delivery=note if same else lambda handle: note(handle))
        rig.flush()
        until(lambda: len(calls) >= 3000)
    assert sorted(offset for offset, _ in calls if offset is not None) == list(range(3000))
    assert {thread for _, thread in calls} == {"slabpress-callbacks"}


def test_a_reporter_whose_callback_hangs_says_that_it_did_not_end(desk: _Desk) -> None:
    batch, leave = desk.batch(), threading.Event()
    DeliveryHandle(batch, 0).add_done_callback(lambda _: leave.wait(WATCHDOG_S))
    desk.deliver(batch)
    assert not desk.reporter.stop(0.01)
    leave.set()


# --- failures nobody has looked at --------------------------------------------------------------------------


def test_an_unseen_failure_is_told_once_with_its_count_and_first_error(desk: _Desk) -> None:
    assert desk.watch.take_unseen() == (0, None)
    first = desk.fail(desk.batch(3))
    desk.fail(desk.batch(2))
    assert desk.watch.take_unseen() == (5, first)
    assert desk.watch.take_unseen() == (0, None)
    second = desk.fail(desk.batch(1))
    assert desk.watch.take_unseen() == (1, second)


def test_a_failure_that_was_looked_at_is_not_told(desk: _Desk) -> None:
    batch = desk.batch(3)
    desk.fail(batch)
    for index in (0, 1):
        handle = DeliveryHandle(batch, index)
        handle.exception()
        handle.exception()
        with pytest.raises(DeliveryError):
            handle.result()
    assert desk.watch.take_unseen()[0] == 1


def test_looks_at_one_batch_never_hide_the_failure_of_another(desk: _Desk) -> None:
    batch, other = desk.batch(2), desk.batch(2)
    DeliveryHandle(batch, 0).add_done_callback(lambda handle: handle.exception())
    desk.fail(batch)
    assert desk.reporter.stop(WATCHDOG_S)
    desk.fail(other)
    for _ in range(3):
        for index in (0, 1):
            DeliveryHandle(batch, index).exception()
        ManyDelivery(2, [batch]).exceptions()
    assert desk.watch.take_unseen()[0] == 2


def test_a_late_look_at_an_old_failure_hides_no_new_one(desk: _Desk) -> None:
    old = desk.batch(3)
    desk.fail(old)
    desk.watch.take_unseen()
    desk.fail(desk.batch(2))
    DeliveryHandle(old, 0).exception()
    ManyDelivery(3, [old]).exceptions()
    assert desk.watch.take_unseen()[0] == 2


def test_a_failure_that_on_delivery_was_told_of_is_not_told_again() -> None:
    desk = _Desk()
    desk.reporter = _reporter(desk.watch, lambda _: None, desk.released)
    desk.fail(desk.batch(3))
    assert desk.reporter.stop(WATCHDOG_S)
    assert desk.watch.take_unseen()[0] == 0


# --- many ---------------------------------------------------------------------------------------------------


def test_many_records_are_done_when_their_last_batch_is(desk: _Desk) -> None:
    batches = [desk.batch(2), desk.batch(3)]
    many = ManyDelivery(5, batches)
    desk.deliver(batches[1])
    assert not many.done()
    with pytest.raises(TimeoutError, match=r"5 records not resolved within 0\.001 s"):
        many.exceptions(0.001)
    desk.deliver(batches[0])
    assert many.done()
    assert (many.result(), many.accepted, many.exceptions()) == (5, 5, [])


def test_many_records_name_every_failed_batch_and_raise_the_first(desk: _Desk) -> None:
    batches = [desk.batch(), desk.batch(), desk.batch()]
    many = ManyDelivery(9, batches)
    errors = [desk.fail(batches[0], "A: a"), desk.fail(batches[2], "C: c")]
    desk.deliver(batches[1])
    assert many.exceptions() == errors
    with pytest.raises(DeliveryError, match="A: a"):
        many.result()
    assert desk.watch.take_unseen()[0] == 0


def test_no_records_are_done_at_once() -> None:
    many = ManyDelivery(0, [])
    assert many.done()
    assert (many.result(), many.exceptions()) == (0, [])
