"""send_many(): the same records as a loop of send(), one promise for all, and an honest count when it fails."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress.errors import (
    BufferFullError,
    DeliveryError,
    RecordTooLargeError,
    RecordTypeError,
    RecordValueError,
    TooManyTopicsError,
)
from slabpress.pipeline.room import Turn
from slabpress.shm.control import COORDINATOR, NETWORK
from tests.pipeline.instant import WATCHDOG_S, DeliveredBatch, Rig, delivered, parts, refused, until
from tests.support.reference_batch import java_partition


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.none() | st.binary(max_size=3), st.none() | st.integers(0, 1500)), min_size=1, max_size=150),
    st.integers(1, 5),
)
def test_keyed_and_keyless_records_arrive_in_order_where_send_would_put_them(
    records: list[tuple[bytes | None, int | None]], partitions: int
) -> None:
    values = [None if size is None else b"%4d" % n + b"x" * size for n, (_, size) in enumerate(records)]
    keys = [key for key, _ in records]
    with Rig({"t": partitions}) as rig:
        many = rig.send_many("t", values, keys=keys, timestamps_ms=list(range(len(records))))
        assert many.result(WATCHDOG_S) == many.accepted == len(records)
        expected = defaultdict(list)
        for stamp, (key, value) in enumerate(zip(keys, values, strict=True)):
            if key is not None:
                expected[java_partition(key, partitions)].append((stamp, key, value))
        keyless = []
        for partition in range(partitions):
            found = [
                (record.timestamp_ms, record.key, record.value)
                for batch in rig.pipeline.batches
                if batch.partition == partition
                for record in batch.records
            ]
            assert found == sorted(found, key=lambda record: record[0])
            assert [record for record in found if record[1] is not None] == expected[partition]
            keyless += [record for record in found if record[1] is None]
        assert sorted(stamp for stamp, _, _ in keyless) == [n for n, key in enumerate(keys) if key is None]
        rig.flush()
        rig.check_all_free()


def test_more_than_the_arena_holds_goes_through_in_one_call() -> None:
    values = [b"%6d" % number for number in range(20_000)]
    with Rig() as rig:
        assert sum(map(len, values)) > rig.producer.config.buffer_memory
        assert rig.send_many("t", values, partition=1).result(WATCHDOG_S) == len(values)
        assert rig.pipeline.values("t", 1) == values


@pytest.mark.parametrize("make", [list, tuple, iter, lambda values: (value for value in values)])
def test_values_may_come_from_any_iterable(make: Callable[[list[bytes]], Any]) -> None:
    values = [b"%d" % number for number in range(500)]
    with Rig({"t": 1}) as rig:
        assert rig.send_many("t", make(values)).result(WATCHDOG_S) == 500
        assert rig.pipeline.values("t", 0) == values


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_an_iterator_is_taken_a_block_at_a_time_and_so_is_what_comes_beside_it(count: int) -> None:
    taken: list[int] = []
    with Rig({"t": 1}) as rig:

        def values() -> Iterator[bytes]:
            for number in range(count):
                taken.append(number)
                assert number < rig.session.accumulator.records_accepted() + 1024, "more than a block ahead"
                yield b"%d" % number

        keys = [b"k%d" % number for number in range(count)]
        stamps = iter(range(count))
        many = rig.send_many("t", values(), keys=keys, timestamps_ms=stamps, partition=0)
        assert many.result(WATCHDOG_S) == many.accepted == count
        found = [record for batch in rig.pipeline.batches for record in batch.records]
    assert taken == list(range(count))
    assert [(r.value, r.key, r.timestamp_ms) for r in found] == [(b"%d" % n, b"k%d" % n, n) for n in range(count)]


@pytest.mark.parametrize("place", [0, 5, 1023, 1024, 2500])
def test_of_an_iterator_nothing_is_lost_when_a_record_is_refused(place: int) -> None:
    entries: list[Any] = [b"%d" % number for number in range(3000)]
    entries[place] = 3.5
    values, keys = iter(entries), (b"k%d" % number for number in range(3000))
    with Rig({"t": 1}) as rig:
        with pytest.raises(RecordTypeError) as caught:
            rig.send_many("t", values, keys=keys, partition=0)
        assert caught.value.accepted == place
        unsent = caught.value.unsent
        assert unsent is not None
        assert unsent["values"][0] == 3.5
        unsent["values"][0] = b"mended"
        rig.send_many("t", partition=0, **unsent)
        rig.send_many("t", values, keys=keys, partition=0)
        rig.flush()
        entries[place] = b"mended"
        found = [(record.key, record.value) for batch in rig.pipeline.batches for record in batch.records]
        assert found == [(b"k%d" % number, value) for number, value in enumerate(entries)]


@pytest.mark.parametrize("place", [0, 700, 1024, 1500])
@pytest.mark.parametrize("at_fault", ["values", "keys", "headers"])
def test_what_an_iterator_raises_comes_after_what_it_gave(place: int, at_fault: str) -> None:
    def entries(make: Callable[[int], Any], *, fails: bool) -> Iterator[Any]:
        for number in range(place if fails else 2000):
            yield make(number)
        raise LookupError("mine")

    makers: dict[str, Callable[[int], Any]] = {"values": b"%d".__mod__, "keys": b"k%d".__mod__, "headers": lambda _: []}
    columns = {name: entries(make, fails=name == at_fault) for name, make in makers.items()}
    with Rig({"t": 1}) as rig:
        with pytest.raises(LookupError, match="mine"):
            rig.send_many("t", partition=0, **columns)
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"%d" % number for number in range(place)]


@pytest.mark.parametrize(("values", "keys"), [(1500, 1400), (1400, 1500), (1024, 1000), (1024, 1025), (0, 1)])
def test_an_iterators_columns_must_be_equally_long(values: int, keys: int) -> None:
    less, more = ("values", "keys") if values < keys else ("keys", "values")
    with Rig({"t": 1}) as rig:
        with pytest.raises(
            RecordTypeError, match=f"{less} has {min(values, keys)} entries and {more} has more"
        ) as caught:
            rig.send_many("t", iter([b"v"] * values), keys=iter([b"k"] * keys), partition=0)
        assert caught.value.accepted == min(values, keys)
        rig.flush()
        assert len(rig.pipeline.values("t", 0)) == min(values, keys)


def test_an_iterator_may_send_by_itself() -> None:
    with Rig({"t": 1, "u": 1}) as rig:

        def send_on(value: bytes) -> bytes:
            rig.send("u", value)
            return value

        rig.send_many("t", map(send_on, [b"a", b"b"]))
        rig.flush()
        assert rig.pipeline.values("t", 0) == rig.pipeline.values("u", 0) == [b"a", b"b"]


def test_nothing_to_send_is_done_at_once() -> None:
    with Rig() as rig:
        many = rig.send_many("t", [])
        assert (many.done(), many.result(), many.accepted) == (True, 0, 0)


@pytest.mark.parametrize("values", [b"bytes", "text", bytearray(b"x"), memoryview(b"x"), 3, None])
def test_values_of_a_wrong_kind_are_refused(values: Any) -> None:
    with Rig() as rig:
        with pytest.raises(RecordTypeError) as caught:
            rig.send_many("t", values)
        kind = type(values).__name__
        assert str(caught.value) == f"values must be a sequence with one entry a record, not {kind}"


@pytest.mark.parametrize("name", ["keys", "headers", "timestamps_ms"])
def test_columns_must_be_as_long_as_the_values(name: str) -> None:
    with Rig() as rig:
        column: dict[str, Any] = {name: [None]}
        with pytest.raises(RecordTypeError, match=f"{name} has 1 entries for 2 values: one each"):
            rig.send_many("t", [b"a", b"b"], **column)
        column = {name: "ab"}
        with pytest.raises(RecordTypeError, match=f"{name} must be a sequence with one entry a record, not str"):
            rig.send_many("t", [b"a", b"b"], **column)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(3, RecordTypeError), ("\ud800", RecordValueError), (b"x" * 40_000, RecordTooLargeError)],
    ids=["type", "surrogate", "too large"],
)
@pytest.mark.parametrize("keyed", [False, True])
def test_a_bad_record_stops_the_call_and_those_before_it_are_on_their_way(
    bad: Any, kind: type[Exception], keyed: bool
) -> None:
    values: list[Any] = [b"%3d" % number for number in range(300)]
    values[217] = bad
    keys = [b"k"] * 300 if keyed else None
    with Rig({"t": 1}, max_request_size=20_000) as rig:
        with pytest.raises(kind) as caught:
            rig.send_many("t", values, keys=keys)
        assert getattr(caught.value, "accepted", None) == 217
        rig.flush()
        assert rig.pipeline.values("t", 0) == values[:217]
        rig.check_all_free()


def test_without_room_the_error_counts_what_was_accepted() -> None:
    values = [b"%5d" % number + b"x" * 500 for number in range(500)]
    with Rig({"t": 1}, max_block_ms=300) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        with pytest.raises(BufferFullError) as caught:
            rig.send_many("t", values)
        accepted = caught.value.accepted
        assert rig.session.arena.geometry.slab_count // 2 <= accepted < 500
        rig.thread.resume()
        rig.flush()
        assert rig.pipeline.values("t", 0)[1:] == values[:accepted]
        for start in range(accepted, len(values), 10):
            rig.send_many("t", values[start : start + 10])
        rig.flush()
        assert rig.pipeline.values("t", 0)[1:] == values


def test_a_table_that_is_full_counts_what_was_accepted() -> None:
    with Rig({"t": 3}, max_topic_partitions=2) as rig:
        keys = [key for key in (b"%d" % n for n in range(40)) if java_partition(key, 3) != 2]
        last = next(key for key in (b"%d" % n for n in range(40)) if java_partition(key, 3) == 2)
        with pytest.raises(TooManyTopicsError) as caught:
            rig.send_many("t", [b"v"] * (len(keys) + 1), keys=[*keys, last])
        assert caught.value.accepted == len(keys)
        rig.flush()


def test_the_promise_fails_with_the_batches_of_the_call_that_fail_and_no_others() -> None:
    def fate(batch: DeliveredBatch) -> Any:
        return refused(batch) if batch.partition == 1 else delivered(batch)

    with Rig({"t": 2}, linger_ms=60_000, request_timeout_ms=1000) as rig:
        rig.pipeline.fate = fate
        good = rig.send_many("t", [b"a"] * 10, partition=0)
        bad = rig.send_many("t", [b"b"] * 10, partition=1)
        with pytest.raises(DeliveryError, match="10 records were not delivered"):
            rig.flush()
        assert good.result(WATCHDOG_S) == 10
        with pytest.raises(DeliveryError, match="INVALID_RECORD"):
            bad.result(WATCHDOG_S)


def test_a_promise_holds_every_batch_of_its_call_and_none_of_another_however_they_interleave() -> None:
    # Two calls, each larger than the arena, wait in turn for room: while one waits, the other seals and opens.
    def fate(batch: DeliveredBatch) -> Any:
        return refused(batch) if b"bad" in (batch.records[0].key or b"") else delivered(batch)

    keys = {name: [b"%s%d" % (name, n % 50) for n in range(9000)] for name in (b"bad", b"good")}
    partitions = {name: {java_partition(key, 16) for key in keys[name]} for name in keys}
    apart = sorted(partitions[b"bad"] - partitions[b"good"])
    keys[b"bad"] = [key for key in keys[b"bad"] if java_partition(key, 16) in apart] or keys[b"bad"]
    keys[b"good"] = [key for key in keys[b"good"] if java_partition(key, 16) not in apart]
    promises: dict[bytes, Any] = {}
    with Rig({"t": 16}) as rig:
        rig.pipeline.fate = fate
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()

        def send(name: bytes) -> None:
            promises[name] = rig.send_many("t", [b"x" * 100] * len(keys[name]), keys=keys[name])

        threads = [threading.Thread(target=send, args=(name,)) for name in keys]
        for thread in threads:
            thread.start()
        until(lambda: len(rig.sender.line.turns) == 2)
        rig.thread.resume()
        for thread in threads:
            thread.join(WATCHDOG_S)
        assert promises[b"good"].result(WATCHDOG_S) == len(keys[b"good"])
        errors = promises[b"bad"].exceptions(WATCHDOG_S)
        assert sum(error.records for error in errors) == len(keys[b"bad"])
        rig.flush()


def test_a_call_notes_a_batch_that_others_seal_before_it_goes_on() -> None:
    with parts(max_block_ms=0, linger_ms=5) as rig:
        topic = rig.topic("t", 2)
        first = rig.send(b"other", partition=0)
        many = rig.send_many([b"mine"] * 3, partition=0)
        assert many.accepted == 3
        rig.accumulator.seal_all()
        assert topic.open == [None, None]
        assert not many.done()
        assert not first.done()


@pytest.mark.parametrize("others_wait", [False, True])
def test_a_call_looks_who_waits_for_room_at_each_batch_if_anybody_does(
    others_wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parts(linger_ms=5, batch_size=4096) as rig:
        rig.topic("t", 1)
        line, with_room, sealed = rig.sender.line, rig.sender.with_room, list[int]()

        def count_and_go_on(*arguments: Any) -> Any:
            sealed.append(len(rig.sealed()))
            return with_room(*arguments)

        monkeypatch.setattr(rig.sender, "with_room", count_and_go_on)
        turn = Turn(rig.sender.lock, 1)
        if others_wait:
            line.join(turn)
        assert rig.send_many([b"x" * 1000] * 12).accepted == 12
        assert len(rig.sealed()) == 2
        assert sealed == ([0, 1, 2] if others_wait else [0])


def test_records_before_a_refused_one_ring_the_coordinator_whose_linger_timer_is_off() -> None:
    with parts(linger_ms=5) as rig:
        rig.topic("t", 1)
        bell = rig.control.bells[COORDINATOR].fileno()
        rig.control.lie_down(COORDINATOR)
        with pytest.raises(RecordTypeError) as caught:
            rig.send_many([b"good", 3])
        assert caught.value.accepted == 1
        assert rig.control.bells[NETWORK].wait(0, [bell]) == [bell]
