"""A whole producer over the instant pipeline: threads, flush, close, failure, and what is told of all that."""

from __future__ import annotations

import contextlib
import select
import threading
from collections import defaultdict
from typing import Any

import pytest

from slabpress._native import DeliveryHandle
from slabpress.errors import (
    CallbackFlushError,
    DeliveryError,
    FlushTimeoutError,
    ProcessError,
    ProducerClosedError,
    SlabpressError,
)
from slabpress.pipeline import coordinator as coordinator_module
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.shm import layout as at
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK
from slabpress.shm.descriptors import Descriptors, Result
from slabpress.shm.states import DONE
from slabpress.shm.topics import TopicTable
from tests.pipeline.instant import WATCHDOG_S, DeliveredBatch, Rig, delivered, refused, until

THREADS, EACH = 8, 1500


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "named partitions"])
def test_every_threads_records_keep_their_order_in_each_partition(keyed: bool) -> None:
    handles: list[list[DeliveryHandle | ManyDelivery]] = [[] for _ in range(THREADS)]
    with Rig({"t": 5}) as rig:
        threads = [
            threading.Thread(target=_send_numbered, args=(rig, number, keyed, handles[number]))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()
        rig.flush()
        assert all(handle.done() for mine in handles for handle in mine)
        arrived = _arrived(rig)
        assert sum(map(len, arrived.values())) == THREADS * EACH
        for records in arrived.values():
            assert records == sorted(records), "a thread's records changed places"
        rig.check_all_free()
        memory = rig.session.arena.memory
        assert memory.load_u64(at.COORDINATOR_COUNTERS_AT) == THREADS * EACH


def _send_numbered(rig: Rig, number: int, keyed: bool, handles: list[DeliveryHandle | ManyDelivery]) -> None:
    """Send as one of many threads: even ones by send(), odd ones by send_many()."""
    for record in range(EACH):
        value = b"%d:%d:" % (number, record) + b"x" * (record % 90)
        key = b"%d" % (record % 11) if keyed else None
        partition = None if keyed else record % 5
        handle: DeliveryHandle | ManyDelivery
        if number % 2 == 0:
            handle = rig.send("t", value, key=key, partition=partition)
        else:
            handle = rig.send_many("t", [value], keys=None if key is None else [key], partition=partition)
        if record % 100 == 0:
            handles.append(handle)


def _arrived(rig: Rig) -> dict[tuple[int, int], list[int]]:
    """The numbers of the records that arrived, by thread and partition, in order."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for partition in range(5):
        for value in rig.pipeline.values("t", partition):
            number, record, _ = (value or b"").split(b":")
            found[int(number), partition].append(int(record))
    return found


def test_lingering_batches_are_sent_without_flush() -> None:
    with Rig(linger_ms=1) as rig:
        assert rig.send("t", b"v").result(WATCHDOG_S).offset == 0
        assert rig.send_many("t", [b"v"] * 3).result(WATCHDOG_S) == 3


def test_flush_does_not_wait_for_linger() -> None:
    with Rig(linger_ms=60_000, request_timeout_ms=1000) as rig:
        handle = rig.send("t", b"v")
        assert rig.pending() == 1
        rig.flush()
        assert handle.done()
        assert rig.pending() == 0


def test_flush_waits_for_callbacks_too() -> None:
    with Rig() as rig:
        calls: list[DeliveryHandle] = []
        for _ in range(50):
            rig.send("t", b"v", on_delivery=calls.append)
        rig.flush()
        assert len(calls) == 50


def test_flush_that_runs_out_of_time_counts_what_is_under_way() -> None:
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        rig.send_many("t", [b"v"] * 7, partition=1)
        with pytest.raises(FlushTimeoutError) as caught:
            rig.producer.flush(0.01)
        assert str(caught.value) == "7 records were still under way after 0.01 s"
        assert caught.value.records == 7
        rig.thread.resume()
        rig.flush()


def test_flush_raises_unseen_failures_once_with_their_count() -> None:
    with Rig() as rig:
        rig.pipeline.fate = refused
        rig.send_many("t", [b"a"] * 3, partition=0)
        rig.send_many("t", [b"b"] * 4, partition=1)
        with pytest.raises(DeliveryError) as caught:
            rig.flush()
        error = caught.value
        assert (error.records, error.topic, error.name, error.code) == (7, "t", "INVALID_RECORD", 87)
        assert str(error).startswith("7 records were not delivered; the first error: 3 records for t-0 were not ")
        assert isinstance(error.__cause__, DeliveryError)
        rig.flush()
        rig.pipeline.fate = delivered
        rig.send("t", b"c")
        rig.flush()


def test_flush_does_not_raise_failures_that_were_looked_at() -> None:
    with Rig() as rig:
        rig.pipeline.fate = refused
        handles = [rig.send("t", b"a", partition=0) for _ in range(3)]
        assert all(handle.exception(WATCHDOG_S) is not None for handle in handles)
        many = rig.send_many("t", [b"b"] * 4, partition=1)
        assert many.exceptions(WATCHDOG_S)
        rig.flush()


def test_a_failed_batch_harms_no_other() -> None:
    def fate(batch: DeliveredBatch) -> Any:
        return refused(batch) if batch.partition == 1 else delivered(batch)

    with Rig() as rig:
        rig.pipeline.fate = fate
        handles = {number: rig.send("t", b"%d" % number, partition=number) for number in range(3)}
        assert [handles[n].exception(WATCHDOG_S) is None for n in range(3)] == [True, False, True]
        rig.flush()
        rig.check_all_free()


def test_a_callback_may_send_but_neither_flush_nor_close() -> None:
    with Rig() as rig:
        raised: list[SlabpressError] = []
        sent: list[DeliveryHandle] = []

        def callback(handle: DeliveryHandle) -> None:
            sent.append(rig.send("t", b"from the callback"))
            for call in (rig.producer.flush, rig.producer.close):
                try:
                    call()
                except SlabpressError as error:
                    raised.append(error)

        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        rig.send("t", b"v", on_delivery=callback)
        rig.thread.resume()
        until(lambda: len(raised) == 2)
        assert [str(error) for error in raised] == [
            "flush() inside a delivery callback would wait for itself",
            "close() inside a delivery callback would wait for itself",
        ]
        assert all(isinstance(error, CallbackFlushError) for error in raised)
        rig.flush()
        assert sent[0].done()


def test_close_delivers_what_was_accepted_and_refuses_the_rest() -> None:
    rig = Rig(linger_ms=60_000, request_timeout_ms=1000)
    with rig:
        handles = [rig.send("t", b"v", partition=0) for _ in range(5)]
        rig.producer.flush(WATCHDOG_S)
        rig.close()
        rig.producer.close()
        assert [handle.result().offset for handle in handles] == list(range(5))
        for call in (
            lambda: rig.send("t", b"v"),
            lambda: rig.send_many("t", [b"v"]),
            lambda: rig.send("t", b"v", partition=1),
            lambda: rig.producer.flush(),
        ):
            with pytest.raises(ProducerClosedError, match="the producer is closed: make another one"):
                call()


def test_close_that_runs_out_of_time_counts_the_lost_and_resolves_every_handle_and_callback() -> None:
    calls: list[DeliveryHandle] = []
    with Rig(linger_ms=60_000, request_timeout_ms=1000) as rig:
        rig.send("t", b"v")
        rig.flush()
        rig.thread.hold()
        handles = [rig.send("t", b"v", partition=0, on_delivery=calls.append) for _ in range(3)]
        many = rig.send_many("t", [b"v"] * 4, partition=1)
        with pytest.raises(FlushTimeoutError) as caught:
            rig.close(0.01)
        assert str(caught.value) == "the producer was closed after 0.01 s with 7 records not acknowledged"
        assert caught.value.records == 7
        for handle in handles:
            error = handle.exception(0)
            assert isinstance(error, DeliveryError)
            assert error.name == "PRODUCER_CLOSED"
            assert str(error) == (
                "3 records for t-0 were not delivered: the producer was closed before they were acknowledged"
            )
        assert [getattr(error, "records", 0) for error in many.exceptions(0)] == [4]
        assert len(calls) == 3


def test_close_raises_failures_that_nobody_looked_at() -> None:
    with Rig() as rig:
        rig.pipeline.fate = refused
        rig.send("t", b"v")
        until(lambda: rig.pending() == 0)
        with pytest.raises(DeliveryError, match="1 records were not delivered"):
            rig.close(WATCHDOG_S)


def fail_supervisor(rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the background thread's next look after the children raise this, and call it for one."""
    supervisor: Any = rig.coordinator._supervisor

    def check() -> None:
        raise error

    monkeypatch.setattr(supervisor, "check", check)
    monkeypatch.setattr(supervisor, "next_time", lambda: 0.0)  # it is looked at only when something is to be done
    rig.coordinator.control.bells[0].ring()


def test_a_failing_supervisor_fails_every_call_and_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        handle = rig.send("t", b"v")
        fail_supervisor(rig, monkeypatch, ProcessError("worker 0 was killed by signal 9"))
        error = handle.exception(WATCHDOG_S)
        assert isinstance(error, DeliveryError)
        assert (error.name, str(error)) == (
            "PROCESS_ERROR",
            "1 records for t-" + str(error.partition) + " were not delivered: worker 0 was killed by signal 9",
        )
        until(lambda: rig.sender.refusal is not None)
        for call in (
            lambda: rig.send("t", b"v"),
            lambda: rig.send_many("t", [b"v"]),
            lambda: rig.producer.flush(),
        ):
            with pytest.raises(ProcessError, match="worker 0 was killed by signal 9"):
                call()
        assert handle.exception(0) is error


def test_an_outcome_is_set_once_even_if_the_result_comes_after_the_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        handle = rig.send("t", b"v")
        with rig.session.lock:
            rig.session.accumulator.seal_all()
        fail_supervisor(rig, monkeypatch, ProcessError("gone"))
        error = handle.exception(WATCHDOG_S)
        assert error is not None
        descriptor = handle._batch.descriptor
        arena = rig.session.arena
        Descriptors(arena).set_result(descriptor, Result(0, -1, 5, -1, retriable=False, text=""))
        arena.batch_states.store(descriptor, DONE)
        rig.close()
        assert handle.exception(0) is error


def test_the_children_are_not_looked_at_for_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        looks = []
        monkeypatch.setattr(rig.coordinator._supervisor, "check", lambda: looks.append(1))
        for _ in range(20):
            rig.send("t", b"v").result(WATCHDOG_S)
        assert not looks


def test_a_bug_in_the_background_thread_is_told_and_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        handle = rig.send("t", b"v")
        fail_supervisor(rig, monkeypatch, LookupError("oops"))
        assert "slabpress failed inside: LookupError('oops'); please report it" in str(handle.exception(WATCHDOG_S))
        with pytest.raises(ProcessError, match="please report it"):
            rig.send("t", b"v")
    assert "the coordinator's thread failed" in caplog.text


def test_a_callback_that_outlives_close_fails_in_nobodys_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "_JOIN_TIMEOUT_S", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def hang(handle: DeliveryHandle) -> None:
        entered.set()
        leave.wait(WATCHDOG_S)

    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.thread.hold()
        rig.send("t", b"v", on_delivery=hang)
        rig.thread.resume()
        assert entered.wait(WATCHDOG_S)
        with contextlib.suppress(FlushTimeoutError):  # its record was delivered, only its callback was not done
            rig.close(0.01)
        leave.set()
        thread = rig.session._intake.reporter._thread
        assert thread is not None
        thread.join(WATCHDOG_S)


def test_a_callback_given_to_send_runs_on_the_callback_thread_even_if_delivery_is_quicker() -> None:
    names: list[str] = []
    with Rig() as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        watch = rig.session.watch
        start = watch.start_callbacks

        def start_late() -> None:
            until(lambda: rig.pending() == 0)
            start()

        watch.start_callbacks = start_late
        rig.send("t", b"v", on_delivery=lambda _: names.append(threading.current_thread().name))
        rig.flush()
        until(lambda: bool(names))
    assert names == ["slabpress-callbacks"]


def test_records_of_many_topics_keep_apart() -> None:
    topics = {f"topic-{number}": 1 for number in range(4)}
    with Rig(topics) as rig:
        for record in range(200):
            rig.send(f"topic-{record % 4}", b"%d" % record)
        rig.flush()
        for number in range(4):
            expected = [b"%d" % record for record in range(200) if record % 4 == number]
            assert rig.pipeline.values(f"topic-{number}", 0) == expected


def test_an_answer_that_comes_just_before_the_coordinator_lies_down_is_not_slept_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Rig({"t": 1}) as rig:
        control, table = rig.coordinator.control, TopicTable(rig.session.arena)
        lie_down = control.lie_down

        def answer_and_lie_down(slot: int) -> None:
            index = table.wanted().get("late")
            if slot == COORDINATOR and index is not None and table.answer(index).partitions == 0:
                table.set_answer(index, 1, 0)  # rings nobody: who is not lying down looks by itself
            lie_down(slot)

        monkeypatch.setattr(rig.pipeline, "answer_topics", lambda: None)
        monkeypatch.setattr(control, "lie_down", answer_and_lie_down)
        found: list[DeliveryHandle] = []
        thread = threading.Thread(target=lambda: found.append(rig.send("late", b"v")))
        thread.start()
        until(lambda: "late" in table.wanted())
        control.bells[COORDINATOR].ring()  # for whatever reason it gets up, and lies down again
        thread.join(WATCHDOG_S)
        assert len(found) == 1


@pytest.mark.timeout(WATCHDOG_S)
def test_a_batch_that_its_sender_sealed_is_rung_for_again_though_the_coordinator_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first ring may have gone to a process that is stopped; nobody but the coordinator makes up for it."""
    monkeypatch.setattr("slabpress.pipeline.session._NUDGE_S", 0.01)
    with Rig() as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        until(lambda: rig.coordinator.control.alarm.due_ns is None)  # nothing is due
        slot = NETWORK if rig.session.arena.is_direct else FIRST_WORKER
        bell = rig.coordinator.control.bells[slot]
        rig.thread.stop()
        for _ in range(2):  # the sender's ring, and the coordinator's
            bell.drain()
            rig.coordinator.control.lie_down(slot)
            if not rig.pending():
                rig.send("t", b"second")
            assert select.select([bell], [], [], WATCHDOG_S)[0], "nobody rang"
        while rig.pipeline.deliver_one() is not None:
            pass
        rig.flush()
