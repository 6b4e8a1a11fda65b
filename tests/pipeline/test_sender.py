"""The way of a record into a batch: topics that are not known yet, partitions, and records that never fit."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from slabpress._native import DeliveryHandle
from slabpress.errors import (
    BootstrapError,
    BufferFullError,
    ProducerClosedError,
    RecordError,
    RecordTooLargeError,
    RecordTypeError,
    SlabpressError,
    TopicNameError,
    UnknownPartitionError,
    UnknownTopicError,
)
from slabpress.shm.control import COORDINATOR
from slabpress.shm.states import FREE, SLAB_SEALED
from tests.pipeline.instant import WATCHDOG_S, Parts, Rig, parts, until
from tests.support.reference_batch import Record, java_partition


def _run(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run a call in a thread; what it returned or raised is in the list."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except SlabpressError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


# --- topics -------------------------------------------------------------------------------------------------


def test_a_topic_that_is_not_known_yet_is_waited_for() -> None:
    with Rig({}) as rig:
        rig.pipeline.topics["late"] = 2
        handle = rig.send("late", b"v")
        assert handle.result(WATCHDOG_S).topic == "late"


def test_a_topic_that_appears_while_send_waits_is_used() -> None:
    with parts(max_block_ms=60_000) as rig:
        thread, found = _run(lambda: rig.send(b"v"))
        _answer_when_wanted(rig, "t", 2)
        thread.join(WATCHDOG_S)
        assert isinstance(found[0], DeliveryHandle)


def _answer_when_wanted(rig: Parts, name: str, partitions: int | None, code: int = 0) -> None:
    """What the network process and the coordinator's thread do once somebody waits for a topic."""
    while name not in rig.table.wanted():
        rig.control.bells[1].wait(0.001)
    rig.table.set_answer(rig.table.wanted()[name], partitions, code)
    with rig.lock:
        rig.registry.refresh()
        rig.sender.lookup.changed.notify_all()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "no answer"),
        (3, "UNKNOWN_TOPIC_OR_PARTITION"),
        (5, "LEADER_NOT_AVAILABLE"),
        (100, "UNKNOWN_TOPIC_ID"),
        (44, "error 44"),
    ],
)
def test_a_topic_that_the_cluster_does_not_know_is_named_with_the_clusters_words(code: int | None, said: str) -> None:
    with parts(max_block_ms=0 if code is None else 100) as rig:
        thread, found = _run(lambda: rig.send(b"v"))
        if code is not None:
            _answer_when_wanted(rig, "t", None, code)
        thread.join(WATCHDOG_S)
        error = found[0]
        assert isinstance(error, UnknownTopicError)
        assert error.retriable
        assert str(error) == (
            f"topic 't' is not known to the cluster within max_block_ms={rig.config.max_block_ms} (it said: {said}): "
            "create it, or allow automatic creation on the brokers"
        )
        rig.registry.drop_idle(time.monotonic() + 3600)
        assert rig.table.wanted() == {}, "nobody asks for it for ever"


@pytest.mark.parametrize(("code", "said"), [(17, "INVALID_TOPIC_EXCEPTION"), (29, "TOPIC_AUTHORIZATION_FAILED")])
def test_a_topic_that_waiting_does_not_mend_is_refused_at_once(code: int, said: str) -> None:
    with Rig({"no": -code}) as rig:
        with pytest.raises(UnknownTopicError) as caught:
            rig.send("no", b"v")
        assert str(caught.value) == f"topic 'no' cannot be used: {said}"


def test_when_no_server_answers_their_last_errors_are_told() -> None:
    with parts() as rig:
        rig.arena.write_report("a:1: connection refused; b:2: timed out")
        with pytest.raises(BootstrapError) as caught:
            rig.send(b"v")
        assert str(caught.value) == (
            "no bootstrap server answered within max_block_ms=0: a:1: connection refused; b:2: timed out"
        )
        assert caught.value.retriable


@pytest.mark.parametrize(("name", "kind"), [("no good", TopicNameError), (b"bytes", RecordTypeError)])
def test_a_wrong_topic_name_is_refused_without_asking_anybody(name: Any, kind: type[Exception]) -> None:
    with parts(max_block_ms=60_000) as rig:
        for call in (lambda: rig.send(b"v", topic=name), lambda: rig.send_many([b"v"], topic=name)):
            with pytest.raises(kind):
                call()
        assert rig.table.wanted_version() == 0


# --- partitions ---------------------------------------------------------------------------------------------


def test_records_go_to_the_partition_that_is_named_or_their_keys_or_the_sticky_one() -> None:
    with Rig({"t": 7}) as rig:
        for number in range(7):
            assert rig.send("t", b"named", partition=number).result(WATCHDOG_S).partition == number
        for key in (b"", b"a", "ü", b"21" * 30):
            data = key.encode() if isinstance(key, str) else key
            assert rig.send("t", b"keyed", key=key).result(WATCHDOG_S).partition == java_partition(data, 7)
        assert rig.send("t", None, key=b"a", partition=2).result(WATCHDOG_S).partition == 2
        keyless = {rig.send("t", b"keyless").result(WATCHDOG_S).partition for _ in range(30)}
        assert len(keyless) > 1


def test_a_partition_that_does_not_exist_is_refused_with_the_number_there_are() -> None:
    with Rig({"t": 3}) as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        for partition in (3, -1, 1 << 40):
            for call in (
                lambda partition=partition: rig.send("t", b"v", partition=partition),
                lambda partition=partition: rig.send_many("t", [b"v"], partition=partition),
            ):
                with pytest.raises(UnknownPartitionError) as caught:
                    call()
                assert str(caught.value) == f"topic 't' has no partition {partition}: it has 3, 0 .. 2"


def test_a_partition_that_was_just_added_is_found() -> None:
    with Rig({"t": 3}) as rig:
        rig.send("t", b"v").result(WATCHDOG_S)
        rig.pipeline.topics["t"] = 5
        assert rig.send("t", b"v", partition=4).result(WATCHDOG_S).partition == 4


@pytest.mark.parametrize("partition", [True, "1", 1.0])
def test_a_partition_is_a_number(partition: Any) -> None:
    text = f"partition must be an int or None, not {type(partition).__name__}"
    with Rig() as rig, pytest.raises(RecordTypeError, match=text):
        rig.send("t", b"v", partition=partition)


# --- records ------------------------------------------------------------------------------------------------


def test_every_part_of_a_record_arrives() -> None:
    with Rig() as rig:
        sent = [
            Record(b"k", b"v", (("h", b"1"), ("h", None)), 5),
            Record(None, None, (), 0),
            Record(b"", b"", (("", b""),), 1 << 47),
        ]
        for record in sent:
            rig.send(
                "t",
                record.value,
                key=record.key,
                headers=list(record.headers),
                timestamp_ms=record.timestamp_ms,
                partition=1,
            )
        rig.flush()
        assert [record for batch in rig.pipeline.batches for record in batch.records] == sent


@pytest.mark.parametrize("value", [b"bytes", "text", "täxt", bytearray(b"held")])
def test_a_record_goes_the_fast_way_unless_somebody_holds_the_lock(value: Any) -> None:
    with parts(linger_ms=60_000) as rig:
        rig.topic("t", 1)
        rig.send(b"first")
        lane = rig.sender.fast_lane
        with rig.lock:
            assert lane.append("t", value, None, None, None, None) is None
        assert lane.append("t", value, None, None, None, None) is not None
        taken, give_back = threading.Event(), threading.Event()

        def hold() -> None:
            with rig.lock:
                taken.set()
                give_back.wait(WATCHDOG_S)

        thread = threading.Thread(target=hold)
        thread.start()
        assert taken.wait(WATCHDOG_S)
        assert lane.append("t", value, None, None, None, None) is None
        give_back.set()
        thread.join(WATCHDOG_S)
        assert lane.append("t", value, "key", [("h", "v")], 0, 5) is not None


def test_headers_that_close_the_fast_way_while_they_are_read_are_obeyed() -> None:
    with parts(linger_ms=60_000) as rig:
        rig.topic("t", 1)
        rig.send(b"first")
        lane = rig.sender.fast_lane

        class Closing(list[Any]):
            def __iter__(self) -> Any:
                lane.closed = True
                return iter([("a", b"b")])

        assert lane.append("t", b"v", None, Closing(), None, None) is None


def test_records_sent_in_turn_to_two_topics_by_two_names_each_go_where_they_should() -> None:
    with Rig({"one": 1, "two": 1}) as rig:
        for number in range(100):
            for name in ("one", "two", "".join(["o", "ne"]), "".join(["t", "wo"])):
                rig.send(name, b"%d %s" % (number, name.encode()))
        rig.flush()
        for name in ("one", "two"):
            expected = [b"%d %s" % (number, name.encode()) for number in range(100) for _ in range(2)]
            assert rig.pipeline.values(name, 0) == expected


@pytest.mark.parametrize("partition", [-1, 2, 2**40, 2**70, -(2**70)])
def test_a_partition_out_of_range_is_refused_with_an_open_batch_too(partition: int) -> None:
    with parts(max_block_ms=0, linger_ms=60_000) as rig:
        rig.topic("t", 2)
        rig.send(b"first", partition=0)
        with pytest.raises(SlabpressError, match=str(partition)):
            rig.send(b"v", partition=partition)


def test_a_timestamp_of_now_is_never_older_than_a_fraction_of_a_millisecond() -> None:
    with Rig({"t": 1}) as rig:
        for _ in range(5):
            before = time.time_ns()
            handles = [rig.send("t", b"v") for _ in range(50)]
            after = time.time_ns()
            rig.flush()
            stamps = [record.timestamp_ms for record in rig.pipeline.batches[-1].records]
            assert handles[-1].done()
            assert (before - 100_000) // 1_000_000 <= min(stamps)
            assert max(stamps) <= after // 1_000_000


def test_a_record_larger_than_max_request_size_is_refused_with_both_sizes_and_harms_no_neighbour() -> None:
    with Rig(max_request_size=3000) as rig:
        before = rig.send("t", b"before", partition=0)
        for call in (
            lambda: rig.send("t", b"x" * 3000, partition=0),
            lambda: rig.send("t", b"x" * 3000),
            lambda: rig.send_many("t", [b"x" * 3000], partition=0),
        ):
            with pytest.raises(RecordTooLargeError) as caught:
                call()
            assert str(caught.value) == (
                "a record for topic 't' takes 3009 bytes encoded and uncompressed, more than max_request_size = 3000 "
                "bytes: raise it (and the topic's max.message.bytes)"
            )
            assert not caught.value.retriable
        after = rig.send("t", b"after", partition=0)
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"before", b"after"]
        assert before.result().offset == 0
        assert after.result().offset == 1


def test_a_record_larger_than_all_slabs_is_refused_with_both_sizes() -> None:
    with Rig() as rig:
        slabs = rig.producer.plan.largest_record_bytes
        assert slabs < rig.producer.config.max_request_size
        with pytest.raises(RecordTooLargeError) as caught:
            rig.send("t", b"x" * slabs)
        assert str(caught.value).endswith(f"more than the {slabs} bytes of slabs in buffer_memory: raise buffer_memory")


def test_the_largest_record_that_fits_takes_every_slab_and_arrives() -> None:
    with Rig() as rig:
        value = b"x" * (rig.producer.plan.largest_record_bytes - 11)
        for _ in range(3):
            rig.send("t", b"small", partition=1)
            rig.send("t", value, partition=0, timestamp_ms=0)
        rig.flush()
        assert rig.pipeline.values("t", 0) == [value] * 3
        assert rig.pipeline.values("t", 1) == [b"small"] * 3
        rig.check_all_free()


@pytest.mark.parametrize(
    ("value", "parts_of_it"),
    [(3, {}), (b"", {"key": 3}), (b"", {"headers": {"a": b"b"}}), (b"", {"timestamp_ms": "now"})],
    ids=["value", "key", "headers", "timestamp"],
)
@pytest.mark.parametrize("partition", [None, 0], ids=["fast lane", "named partition"])
def test_a_refused_record_leaves_nothing_in_its_batch(
    value: Any, parts_of_it: dict[str, Any], partition: int | None
) -> None:
    with Rig({"t": 1}) as rig:
        for _ in range(2):
            rig.send("t", b"good")
            with pytest.raises(RecordTypeError) as caught:
                rig.send("t", value, partition=partition, **parts_of_it)
            assert isinstance(caught.value, RecordError)
            assert caught.value.accepted == 0
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"good"] * 2
        rig.check_all_free()


def test_a_first_record_that_is_refused_holds_its_descriptor_no_longer_than_linger() -> None:
    with parts(linger_ms=5) as rig:
        topic = rig.topic("t", 1)
        wrong: Any = 3.5
        with pytest.raises(RecordTypeError):
            rig.send(wrong)
        opened = topic.open[0]
        rig.accumulator.seal_lingering((opened.created_ns if opened else 0) + 5_000_000)
        assert rig.arena.batch_states.tally(1)[FREE] == rig.arena.geometry.batch_count


def test_records_of_one_batch_get_offsets_one_after_the_other() -> None:
    with Rig(linger_ms=60_000, request_timeout_ms=1000) as rig:
        handles = [rig.send("t", b"%d" % number, partition=2) for number in range(20)]
        assert not any(handle.done() for handle in handles)
        rig.flush()
        assert [handle.result().offset for handle in handles] == list(range(20))
        assert len(rig.pipeline.batches) == 1


def test_a_full_batch_is_sealed_and_the_next_one_opened() -> None:
    with Rig(linger_ms=60_000, request_timeout_ms=1000, buffer_memory=256 * 1024) as rig:
        for number in range(100):
            rig.send("t", b"%3d" % number + b"x" * 400, partition=0, timestamp_ms=0)
        rig.flush()
        sizes = [len(batch.records) for batch in rig.pipeline.batches]
        assert max(sizes) == 4096 // (403 + 9)
        assert [value[:3] for value in rig.pipeline.values("t", 0) if value] == [b"%3d" % n for n in range(100)]


# --- refusal ------------------------------------------------------------------------------------------------


def _closed() -> SlabpressError:
    return ProducerClosedError("closed")


@pytest.mark.parametrize("many", [False, True])
def test_a_send_that_waited_for_the_lock_while_the_producer_was_closed_says_so(many: bool) -> None:
    with parts(max_block_ms=60_000) as rig:
        rig.topic("t", 1)
        rig.send(b"v")
        waits = threading.Event()

        class Announced:
            def __enter__(self) -> None:
                waits.set()
                rig.lock.acquire()

            def __exit__(self, *exc: object) -> None:
                rig.lock.release()

        stand_in: Any = Announced()
        rig.sender.lock = stand_in
        with rig.lock:
            call: Callable[[], object] = (lambda: rig.send_many([b"w"])) if many else (lambda: rig.send(b"w"))
            thread, found = _run(call)
            assert waits.wait(WATCHDOG_S), "it has looked at the refusal and comes to the lock"
            rig.sender.refuse(_closed)
        thread.join(WATCHDOG_S)
        assert isinstance(found[0], ProducerClosedError)


def test_a_send_that_waits_for_a_topic_is_refused_when_the_producer_closes() -> None:
    with parts(max_block_ms=60_000) as rig:
        thread, found = _run(lambda: rig.send(b"v"))
        while "t" not in rig.table.wanted():
            rig.control.bells[1].wait(0.001)
        with rig.lock:
            rig.sender.refuse(_closed)
            rig.sender.lookup.changed.notify_all()
        thread.join(WATCHDOG_S)
        assert isinstance(found[0], ProducerClosedError)


def _is_rung(rig: Parts) -> bool:
    return bool(select.select([rig.control.bells[COORDINATOR]], [], [], 0)[0])


@pytest.mark.parametrize("many", [False, True])
def test_a_first_record_rings_the_coordinator_and_one_that_finds_no_room_does_not(many: bool) -> None:
    """Called for room that is not there, a waiting thread would ring for its empty batch, and be called again."""
    with parts(linger_ms=1000) as rig:
        rig.topic("t", 2)
        rig.control.lie_down(COORDINATOR)
        if many:
            rig.send_many([b"a"], partition=0)
        else:
            rig.send(b"a", partition=0)
        assert _is_rung(rig)
        rig.accumulator.seal_all()
        rig.control.bells[COORDINATOR].drain()
        rig.control.alarm.forget()  # it has come, and lies down again
        taken = rig.arena.slabs.claim(rig.arena.slabs.count_free(), SLAB_SEALED)
        with pytest.raises(BufferFullError):
            rig.send_many([b"b"], partition=1) if many else rig.send(b"b", partition=1)
        assert not _is_rung(rig)
        rig.arena.slabs.mark(taken, FREE)


@pytest.mark.parametrize("many", [False, True])
def test_without_linger_a_record_is_sealed_by_who_sends_it_unless_one_of_its_topic_is_on_the_way(many: bool) -> None:
    def send(value: bytes) -> None:
        if many:
            rig.send_many([value], partition=1)
        else:
            rig.send(value, partition=1)

    with parts(linger_ms=0) as rig:
        topic = rig.topic("t", 2)
        rig.control.lie_down(COORDINATOR)
        rig.control.alarm.set(0, ring=False)  # it will look around by itself, and make up for a ring that is lost
        send(b"a")
        assert (len(rig.accumulator.all_open()), topic.under_way) == (0, {1: 1})
        assert not _is_rung(rig)
        rig.control.alarm.forget()
        send(b"b")
        assert len(rig.accumulator.all_open()) == 1
        assert _is_rung(rig)
        rig.accumulator.seal_all()


@pytest.mark.parametrize("linger_ms", [0, 60_000])
def test_who_opens_a_batch_has_the_coordinator_look_within_a_second_whoever_seals_it(linger_ms: int) -> None:
    """It makes up for a ring that is lost, which nothing else would."""
    for turn_in_s in (None, 3600.0):
        with parts(linger_ms=linger_ms) as rig:
            rig.topic("t", 1)
            rig.control.lie_down(COORDINATOR)
            if turn_in_s is not None:
                rig.control.alarm.set(time.monotonic_ns() + int(turn_in_s * 1e9), ring=False)
            rig.send(b"a", partition=0)
            assert len(rig.accumulator.all_open()) == (1 if linger_ms else 0)
            assert _is_rung(rig)
            assert rig.control.alarm.due_ns is not None
            assert rig.control.alarm.due_ns <= time.monotonic_ns() + 1_000_000_000
            rig.accumulator.seal_all()


def test_without_linger_a_call_of_many_records_fills_its_batches() -> None:
    with parts(linger_ms=0, batch_size=4096) as rig:
        rig.topic("t", 1)
        rig.send_many([b"x" * 400] * 25, partition=0)
        sealed = [batch.records for batch in rig.accumulator.batches if batch is not None and batch.closed]
        assert len(sealed) == 2
        assert min(sealed) >= 9  # of 10 that have room
        rig.accumulator.seal_all()


@pytest.mark.parametrize("many", [False, True])
def test_the_coordinator_is_rung_for_a_batch_only_if_it_would_sleep_past_its_linger_time(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slabpress.pipeline.accumulator.NUDGE_NS", 3600 * 1_000_000_000)
    with parts(linger_ms=60_000) as rig:
        rig.topic("t", 3)
        rig.control.lie_down(COORDINATOR)
        for partition, turn_in_s, is_rung in ((0, 30.0, False), (1, 90.0, True), (2, 0.0, False)):
            rig.control.alarm.forget()
            rig.control.alarm.set(time.monotonic_ns() + int(turn_in_s * 1e9), ring=False)
            rig.send_many([b"a"], partition=partition) if many else rig.send(b"a", partition=partition)
            assert _is_rung(rig) == is_rung
            rig.control.bells[COORDINATOR].drain()
            rig.accumulator.seal_all()


@pytest.mark.parametrize("many", [False, True])
def test_a_coordinator_that_was_rung_is_not_rung_again_until_it_lies_down_anew(many: bool) -> None:
    """It may wait for the interpreter's lock for long, and looks at every batch once it has it."""

    def send() -> bool:
        rig.send_many([b"a"], partition=0) if many else rig.send(b"a", partition=0)
        rung = _is_rung(rig)
        rig.control.bells[COORDINATOR].drain()
        rig.accumulator.seal_all()
        return rung

    with parts(linger_ms=1000) as rig:
        rig.topic("t", 1)
        rig.control.lie_down(COORDINATOR)
        assert [send() for _ in range(3)] == [True, False, False]
        rig.control.alarm.forget()
        assert [send() for _ in range(2)] == [True, False]


def test_a_coordinator_that_is_about_to_sleep_is_rung() -> None:
    """It has said that it sleeps, and does not know for how long yet."""
    with Rig({"t": 1}, linger_ms=60_000) as rig:
        rig.send("t", b"a")
        alarm = rig.coordinator.control.alarm
        rested, rest = [], rig.session.rest

        def look() -> float | None:
            rested.append(alarm.due_ns)
            return rest()

        rig.session.rest = look  # type: ignore[method-assign]
        rig.coordinator.control.bells[COORDINATOR].ring()
        until(lambda: bool(rested) and alarm.due_ns is not None)
        assert rested == [None] * len(rested)


@pytest.mark.parametrize("many", [False, True])
def test_a_record_that_is_refused_leaves_no_open_batch(many: bool) -> None:
    with parts(linger_ms=1000) as rig:
        topic = rig.topic("t", 1)
        wrong: Any = 5
        for value in (wrong, b"x" * 100_000):
            with pytest.raises(RecordError):
                rig.send_many([value]) if many else rig.send(value)
            assert topic.open == [None]
            assert rig.arena.batch_states.tally(1)[FREE] == rig.arena.geometry.batch_count
