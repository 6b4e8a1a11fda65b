"""The callback thread's beginning and end, whoever asks for it meanwhile, and whatever a signal handler does then."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from slabpress._native import DeliveryHandle, Memory, Sleeper
from slabpress.errors import FlushTimeoutError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.reporter import Reporter
from slabpress.pipeline.topics import Topic
from slabpress.pipeline.watch import Watch
from tests.pipeline.instant import WATCHDOG_S, Rig, until
from tests.shm.kit import make_writer, small_arena

CALLBACKS = "slabpress-callbacks"

pytestmark = pytest.mark.timeout(WATCHDOG_S)


class _Results:
    """There are none."""

    def has_results(self) -> bool:
        return False

    def take_or_tell(self) -> None:
        pass


class _Desk:
    """A reporter, and what its callbacks were called in."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.memory = Memory(bytearray(64))
        self.reporter = Reporter(self.watch, None, lambda _: None, _Results(), Sleeper(self.memory, 0))
        self.called: list[str] = []

    def batch(self) -> Batch:
        made = Batch(0, 0, Topic("t", 0), 0, self.watch)
        with small_arena() as arena:
            make_writer(arena).append(made, None, None, None, 0)
        return made

    def resolved(self) -> DeliveryHandle:
        batch = self.batch()
        self.reporter.resolve([(batch, Outcome(None, 0, -1))])
        return DeliveryHandle(batch, 0)

    def note(self, _: DeliveryHandle) -> None:
        self.called.append(threading.current_thread().name)

    def ask(self, handle: DeliveryHandle) -> None:
        """As send() does with its callback."""
        handle._batch.call_on_thread(handle, self.note)


@pytest.fixture
def desk() -> Iterator[_Desk]:
    made = _Desk()
    yield made
    assert made.reporter.stop(WATCHDOG_S)
    assert CALLBACKS not in _threads()


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("was_there", [False, True])
def test_a_callback_that_comes_after_the_threads_end_runs_where_it_was_asked_for(desk: _Desk, was_there: bool) -> None:
    """A signal handler that closes the producer between a record and the note of its callback."""
    handle = desk.resolved()
    if was_there:
        desk.reporter.start()
    assert desk.reporter.stop(WATCHDOG_S)
    desk.ask(handle)
    assert desk.called == [threading.current_thread().name]
    assert desk.watch.late_asked == desk.watch.late_run == 0


@pytest.mark.parametrize("runs", [False, True], ids=["before it runs", "when it runs"])
def test_a_signal_handler_that_raises_while_the_thread_is_started_leaves_one_or_none(
    desk: _Desk, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if runs:
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.reporter.start()
    desk.ask(desk.resolved())
    until(lambda: desk.called == [CALLBACKS])
    until(lambda: _threads().count(CALLBACKS) == 1)


def test_who_ends_the_thread_waits_for_one_that_is_just_being_started(
    desk: _Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, starting, go_on = threading.Thread.start, threading.Event(), threading.Event()

    def slow_start(thread: threading.Thread) -> None:
        if thread.name == CALLBACKS:
            starting.set()
            assert go_on.wait(WATCHDOG_S)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow_start)
    ended: list[bool] = []
    starter = threading.Thread(target=desk.reporter.start)
    ender = threading.Thread(target=lambda: ended.append(desk.reporter.stop(WATCHDOG_S)))
    starter.start()
    assert starting.wait(WATCHDOG_S)
    ender.start()
    ender.join(0.1)
    assert ender.is_alive()
    go_on.set()
    starter.join()
    ender.join()
    assert ended == [True]


def test_no_thread_is_started_by_who_has_to_wait_until_it_was_ended(desk: _Desk) -> None:
    with desk.reporter._starting:
        late = threading.Thread(target=desk.reporter.start)
        late.start()
        late.join(0.1)
        assert desk.reporter.stop(WATCHDOG_S), "it is this thread that starts one: not waited for"
    late.join()
    assert CALLBACKS not in _threads()


def test_a_thread_whose_producer_is_closed_while_it_is_started_touches_nothing(
    desk: _Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal handler, in the thread that starts it."""
    start, failed, ended = threading.Thread.start, list[object](), list[bool]()

    def close_and_start(thread: threading.Thread) -> None:
        ended.append(desk.reporter.stop(WATCHDOG_S))
        desk.memory.release()
        start(thread)

    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(threading.Thread, "start", close_and_start)
    desk.reporter.start()
    until(lambda: CALLBACKS not in _threads())
    assert ended == [False]
    assert failed == []


def test_flush_waits_for_no_callback_that_a_signal_handler_kept_from_being_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with Rig({"t": 1}) as rig:
        handle = rig.send("t", b"v")
        rig.flush()
        with monkeypatch.context() as patch:
            patch.setattr(rig.session._intake.reporter, "_put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                handle._batch.call_on_thread(handle, lambda _: None)
        rig.flush()


def test_a_callback_that_was_queued_and_not_counted_keeps_no_later_flush_from_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(_: DeliveryHandle) -> None:
        entered.set()
        assert leave.wait(WATCHDOG_S)

    with Rig({"t": 1}) as rig:
        handle, reporter = rig.send("t", b"v"), rig.session._intake.reporter
        rig.flush()
        put = reporter._put

        def put_and_raise(item: Batch) -> None:
            put(item)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(reporter, "_put", put_and_raise)
            with pytest.raises(KeyboardInterrupt):
                handle._batch.call_on_thread(handle, lambda _: None)
        until(lambda: rig.session.watch.late_run == 1)
        handle._batch.call_on_thread(handle, hang)
        assert entered.wait(WATCHDOG_S)
        with pytest.raises(FlushTimeoutError):
            rig.producer.flush(0.01)
        leave.set()
        rig.flush()
