"""Who takes results in: the callback thread, which sleeps for them, or the coordinator's while that is busy."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest.mock import Mock

import pytest

from slabpress._native import DeliveryHandle
from slabpress.errors import FlushTimeoutError, ProcessError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.supervisor import Supervisor
from slabpress.shm import layout as at
from slabpress.shm.control import COORDINATOR
from slabpress.shm.states import DONE
from tests.pipeline.instant import WATCHDOG_S, Rig, delivered, refused, until

CALLBACKS = "slabpress-callbacks"

pytestmark = pytest.mark.timeout(WATCHDOG_S)


@pytest.fixture(autouse=True)
def no_nudge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's thread does not come by every second: a wake-up that is lost must show."""
    monkeypatch.setattr("slabpress.pipeline.session._NUDGE_S", 3600.0)


def _is_asleep(rig: Rig) -> bool:
    return rig.session.arena.memory.load_u32(at.RESULTS_SLEEPER_AT) != 0


def _start_callbacks(rig: Rig) -> None:
    """Have the callback thread started, and wait until it sleeps for results."""
    rig.send("t", b"first", on_delivery=lambda _: None)
    rig.flush()
    until(lambda: _is_asleep(rig))


def _set(event: threading.Event, _: DeliveryHandle) -> None:
    event.set()


class _Hang:
    """A callback that returns when it is told to."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def __call__(self, _: DeliveryHandle) -> None:
        self.entered.set()
        assert self.leave.wait(WATCHDOG_S)


def test_a_result_wakes_the_callback_thread_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        control, rung_by = rig.coordinator.control, []
        wake = control.wake

        def note_and_wake(slot: int) -> None:
            if slot == COORDINATOR:
                rung_by.append(threading.current_thread().name)
            wake(slot)

        monkeypatch.setattr(control, "wake", note_and_wake)
        for _ in range(20):
            called = threading.Event()
            rig.send("t", b"v", on_delivery=partial(_set, called))
            assert called.wait(WATCHDOG_S)
            until(lambda: _is_asleep(rig))
        assert "instant pipeline" not in rung_by


def test_flush_waits_for_a_callback_that_came_after_its_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first callback of all starts the thread for them, which may take longer than the delivery does.
    with Rig({"t": 1}) as rig:
        hang, start = _Hang(), threading.Thread.start

        def deliver_and_start(thread: threading.Thread) -> None:
            if thread.name == CALLBACKS:
                until(lambda: rig.session.watch.delivered_ever == 1)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", deliver_and_start)
        rig.send("t", b"v", on_delivery=hang)
        assert hang.entered.wait(WATCHDOG_S)
        with pytest.raises(FlushTimeoutError, match="1 records were still under way"):
            rig.producer.flush(0.01)
        hang.leave.set()
        rig.flush()


def test_results_are_taken_in_while_a_callback_takes_long() -> None:
    hang = _Hang()
    with Rig({"t": 2}) as rig:
        _start_callbacks(rig)
        rig.send("t", b"slow", partition=0, on_delivery=hang)
        assert hang.entered.wait(WATCHDOG_S)
        for number in range(3):
            assert rig.send("t", b"quick", partition=1).result(WATCHDOG_S).offset is not None, number
        assert not hang.leave.is_set()
        hang.leave.set()
        rig.flush()
        rig.check_all_free()


def test_a_callback_may_wait_for_another_records_result() -> None:
    places: list[int | None] = []
    with Rig({"t": 2}) as rig:
        _start_callbacks(rig)

        def send_and_wait(_: DeliveryHandle) -> None:
            places.append(rig.send("t", b"second", partition=1).result(WATCHDOG_S).offset)

        rig.send("t", b"v", partition=0, on_delivery=send_and_wait)
        rig.flush()
        assert places == [rig.pipeline.offsets["t", 1] - 1]


def test_a_result_just_before_the_callback_thread_lies_down_is_not_slept_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        rig.thread.stop()
        reporter, control = rig.session._intake.reporter, rig.coordinator.control
        sleeper, wake = reporter._sleeper, control.wake
        monkeypatch.setattr(control, "wake", lambda slot: slot == COORDINATOR or wake(slot))
        called = threading.Event()

        class Late:
            """Something is delivered before "I sleep" is said: it rings the coordinator, here nobody."""

            def __getattr__(self, name: str) -> Any:
                return getattr(sleeper, name)

            def lie_down(self) -> None:
                while rig.pipeline.deliver_one() is not None:
                    pass
                sleeper.lie_down()

        reporter._sleeper = cast(Any, Late())
        rig.send("t", b"v", on_delivery=lambda _: called.set())
        sleeper.call()  # it looks, finds nothing, and lies down again
        assert called.wait(WATCHDOG_S)


def test_a_callback_thread_that_another_process_left_asleep_is_woken_by_its_own() -> None:
    """A network process that dies says "awake" for it, and wakes nobody."""
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        rig.session.arena.memory.store_u32(at.RESULTS_SLEEPER_AT, 0)
        called = threading.Event()
        rig.send("t", b"v", on_delivery=lambda _: called.set())
        assert called.wait(WATCHDOG_S)


def test_who_waits_for_room_is_called_although_the_callback_that_follows_takes_long() -> None:
    hang, sent = _Hang(), list[DeliveryHandle]()
    with Rig({"t": 1}, linger_ms=3_600_000, delivery_timeout_ms=7_200_000) as rig:
        _start_callbacks(rig)
        rig.thread.hold()
        records = 2 * rig.session.arena.geometry.slab_count

        def send_all() -> None:
            for number in range(records):
                sent.append(rig.send("t", b"x" * 900, on_delivery=None if number else hang))

        thread = threading.Thread(target=send_all)
        thread.start()
        until(lambda: bool(rig.sender.line.turns) and _is_asleep(rig))
        before = len(sent)
        assert rig.pipeline.deliver_one() is not None, "the batch whose first record has the callback"
        assert hang.entered.wait(WATCHDOG_S)
        until(lambda: len(sent) > before)
        hang.leave.set()
        rig.thread.resume()
        thread.join(WATCHDOG_S)
        rig.flush()
        rig.check_all_free()


class _Held:
    """The coordinator's thread, held between taking a batch and reporting it; who else asks for results meanwhile.

    The batch is refused: one that was delivered is taken and reported in one step.
    """

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_taken, self.go_on, self.other_asks = threading.Event(), threading.Event(), threading.Event()
        monkeypatch.setattr(
            rig.pipeline, "fate", lambda batch: delivered(batch) if self.has_taken.is_set() else refused(batch)
        )
        intake = rig.session._intake
        self._resolve = intake.reporter.resolve
        monkeypatch.setattr(intake, "take", partial(self._note_and_call, intake.take))
        monkeypatch.setattr(intake, "abandon", partial(self._note_and_call, intake.abandon))
        monkeypatch.setattr(intake.reporter, "resolve", self.resolve)

    def resolve(self, outcomes: list[tuple[Batch, Outcome]]) -> None:
        if threading.current_thread().name == "slabpress" and not self.has_taken.is_set():
            self.has_taken.set()
            assert self.go_on.wait(WATCHDOG_S)
        self._resolve(outcomes)

    def _note_and_call(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        if self.has_taken.is_set():
            self.other_asks.set()
        return ask(*arguments)


def test_callbacks_keep_their_order_whichever_thread_takes_the_results_in(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, called = _Hang(), list[bytes]()

    def note(value: bytes) -> Callable[[DeliveryHandle], None]:
        return lambda handle: called.append(value if handle.exception(0) is None else b"not " + value)

    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        rig.send("t", b"slow", on_delivery=hang)
        assert hang.entered.wait(WATCHDOG_S)
        held = _Held(rig, monkeypatch)
        rig.send("t", b"one", on_delivery=note(b"one"))
        assert held.has_taken.wait(WATCHDOG_S)
        hang.leave.set()
        until(lambda: _is_asleep(rig))
        rig.send("t", b"two", on_delivery=note(b"two"))
        assert held.other_asks.wait(WATCHDOG_S)
        held.go_on.set()
        rig.flush()
        assert called == [b"not one", b"two"]


def test_what_a_thread_has_taken_in_is_not_abandoned_under_its_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, called, lost = _Hang(), list[DeliveryHandle](), list[int]()
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        rig.send("t", b"slow", on_delivery=hang)
        assert hang.entered.wait(WATCHDOG_S)
        held = _Held(rig, monkeypatch)
        handle = rig.send("t", b"v", on_delivery=called.append)
        assert held.has_taken.wait(WATCHDOG_S)
        thread = threading.Thread(target=lambda: lost.append(rig.session.abandon("PRODUCER_CLOSED", "closed")))
        thread.start()
        assert held.other_asks.wait(WATCHDOG_S)
        held.go_on.set()
        thread.join(WATCHDOG_S)
        assert "INVALID_RECORD" in str(handle.exception(0)), "and not that it was lost"
        hang.leave.set()
        rig.flush()
        assert (lost, len(called)) == ([0], 1)
        rig.check_all_free()


@pytest.mark.parametrize("alone", [False, True])
def test_what_goes_wrong_in_the_callback_thread_is_told_and_leaves_nobody_waiting(
    alone: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)

        def fail() -> list[Batch]:
            if threading.current_thread().name == CALLBACKS:
                raise LookupError("oops")
            return []  # the coordinator's has not been quicker

        monkeypatch.setattr(rig.session.accumulator, "take_done", fail)
        take_lone = Mock(side_effect=LookupError("oops")) if alone else Mock(return_value=False)
        arrivals = Mock(take_lone=take_lone, settle=Mock(return_value=(0, 1)))
        monkeypatch.setattr(rig.session.accumulator, "arrivals", arrivals)
        handle = rig.send("t", b"v", on_delivery=lambda _: None)
        assert "slabpress failed inside: LookupError('oops'); please report it" in str(handle.exception(WATCHDOG_S))
        with pytest.raises(ProcessError, match="please report it"):
            rig.send("t", b"v")
    assert "the coordinator's thread failed" in caplog.text


def test_the_callbacks_of_what_was_settled_run_although_something_goes_wrong_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)
        called = threading.Event()
        wake_coordinator = partial(rig.coordinator.control.wake, COORDINATOR)
        monkeypatch.setattr(rig.pipeline, "tell_of_results", wake_coordinator)  # the callback thread sleeps on
        monkeypatch.setattr(rig.session._intake.reporter, "tell_of_settled", Mock(side_effect=LookupError("oops")))
        rig.send("t", b"v", on_delivery=lambda _: called.set())
        assert called.wait(WATCHDOG_S)
        with pytest.raises(ProcessError, match="please report it"):
            rig.send("t", b"v")


def test_a_producer_that_cannot_start_leaves_no_callback_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Supervisor) -> None:
        raise ProcessError("worker 0 cannot be started")

    monkeypatch.setattr(Supervisor, "start", fail)
    before = set(threading.enumerate())
    with pytest.raises(ProcessError, match="cannot be started"):
        Rig({"t": 1}, on_delivery=lambda _: None)
    assert set(threading.enumerate()) <= before


def test_a_callback_that_forks_goes_on_in_the_parent_alone() -> None:
    codes: list[int] = []
    with Rig({"t": 1}) as rig:
        _start_callbacks(rig)

        def fork(_: DeliveryHandle) -> None:
            child = os.fork()
            if child == 0:
                signal.alarm(int(WATCHDOG_S))
                return  # the thread ends, and with it the child: there is no other
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        handle = rig.send("t", b"v", on_delivery=fork)
        batch, states = handle._batch, rig.session.arena.batch_states
        rig.flush()
        assert codes == [0]
        assert rig.send("t", b"v").result(WATCHDOG_S).offset == 2
        assert states.load(batch.descriptor) != DONE
        rig.flush()
        rig.check_all_free()


def test_in_the_child_of_a_callback_that_forks_no_other_callback_runs() -> None:
    reading, writing = os.pipe()
    with Rig({"t": 1}, linger_ms=60_000) as rig:
        _start_callbacks(rig)
        called: list[int] = []

        def fork(_: DeliveryHandle) -> None:
            called.append(1)
            child = os.fork()
            if child == 0:
                signal.alarm(int(WATCHDOG_S))
                called.clear()
                os.register_at_fork(after_in_child=lambda: os.write(writing, b"f"))  # it shall not fork again
                return
            os.waitpid(child, 0)

        for _ in range(4):
            rig.send("t", b"v", on_delivery=fork)
        rig.flush()
        assert len(called) == 4, "one batch of four records"
        os.close(writing)
        assert os.read(reading, 100) == b""
        os.close(reading)


def test_a_forked_child_that_asks_a_delivered_handle_for_a_callback_starts_no_thread() -> None:
    with Rig({"t": 1}) as rig:
        handle = rig.send("t", b"v")
        rig.flush()
        child = os.fork()
        if child == 0:
            signal.alarm(int(WATCHDOG_S))
            code, called = 1, list[DeliveryHandle]()
            try:
                handle.add_done_callback(called.append)
                code = 0 if called == [handle] and threading.active_count() == 1 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


WAITS: dict[str, Callable[[Rig], object]] = {
    "result": lambda rig: rig.send("t", b"v").result(WATCHDOG_S),
    "exception": lambda rig: rig.send("t", b"v").exception(WATCHDOG_S),
    "many results": lambda rig: rig.send_many("t", [b"v"]).result(WATCHDOG_S),
    "flush": lambda rig: rig.flush(),
}


@pytest.mark.parametrize("name", WAITS)
def test_who_waits_for_a_result_has_a_thread_sleep_for_it(name: str) -> None:
    with Rig({"t": 1}) as rig:
        rig.send("t", b"first")
        until(lambda: not rig.pending())
        assert CALLBACKS not in _threads()
        for _ in range(2):
            WAITS[name](rig)
            assert _threads().count(CALLBACKS) == 1
        until(lambda: _is_asleep(rig))
    assert CALLBACKS not in _threads()


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("name", WAITS)
def test_without_another_thread_to_be_had_the_coordinators_takes_results_in(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Rig({"t": 1}) as rig:
        monkeypatch.setattr(threading.Thread, "start", fail)
        WAITS[name](rig)
        assert CALLBACKS not in _threads()


def test_a_closed_producers_handles_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would sleep on a word that is gone."""
    called: list[str] = []
    with Rig({"t": 1}) as rig:
        handle = rig.send("t", b"v")
        until(lambda: not rig.pending())
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    handle.add_done_callback(lambda _: called.append(threading.current_thread().name))
    assert called == [threading.current_thread().name]
    rig.session.watch.have_results_taken()
    assert started == []
