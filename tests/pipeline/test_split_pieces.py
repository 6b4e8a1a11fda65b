"""What is kept of a split batch, what a close in the middle of one loses, and what a topic learns from it."""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable

import pytest

from slabpress._native import NO_LIMIT, DeliveryHandle
from slabpress.errors import DeliveryError, FlushTimeoutError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Delivery, Outcome, Piece
from slabpress.pipeline.topics import Topic
from slabpress.pipeline.watch import Watch
from slabpress.shm.control import FIRST_WORKER
from slabpress.shm.states import PARTIAL, READY
from tests.pipeline.instant import WATCHDOG_S, until
from tests.pipeline.splitting import LIMIT, LimitedRig, flush_failing, resolved
from tests.support.limited_broker import HEADER_BYTES
from tests.support.split_bench import numbered


def failure(name: str = "MESSAGE_TOO_LARGE") -> Outcome:
    error = DeliveryError("1 records", topic="t", partition=0, name=name, code=10)
    return Outcome(error, -1, -1)


def loose_batch() -> Batch:
    return Batch(0, 0, Topic("t", 0), 0, Watch())


def test_however_many_records_fail_alone_one_piece_is_left() -> None:
    batch, first = loose_batch(), failure()
    batch.resolve_piece(1, first)
    for _ in range(99_999):
        batch.resolve_piece(1, failure())
    assert batch.pieces == [Piece(0, 100_000, first)]
    assert batch.records_resolved == 100_000


def test_pieces_that_come_to_the_same_end_are_one() -> None:
    batch = loose_batch()
    ends: list[tuple[int, Outcome]] = [
        (3, Outcome(None, 100, -1)),
        (4, Outcome(None, 103, -1)),
        (1, Outcome(None, 200, -1)),  # somebody else's records are in between
        (1, failure()),
        (1, failure()),
        (2, failure("OTHER")),
        (5, Outcome(None, 201, 7)),
        (5, Outcome(None, 206, 8)),  # another time of the append
        (1, Outcome(None, 211, 8)),
    ]
    for count, outcome in ends:
        batch.resolve_piece(count, outcome)
    assert batch.pieces is not None
    assert [(piece.first, piece.records) for piece in batch.pieces] == [
        (0, 7), (7, 1), (8, 2), (10, 2), (12, 5), (17, 6),
    ]  # fmt: skip
    batch.resolve(Outcome(None, 0, 0))
    found = [DeliveryHandle(batch, index) for index in range(23)]
    deliveries = [handle.result() for handle in found if handle.exception() is None]
    assert [delivery.offset for delivery in deliveries] == [*range(100, 107), 200, *range(201, 212)]
    assert [delivery.append_time_ms for delivery in deliveries] == [None] * 8 + [7] * 5 + [8] * 6
    assert deliveries[0] == Delivery("t", 0, 100, None)
    assert [getattr(handle.exception(), "name", None) for handle in found[8:12]] == ["MESSAGE_TOO_LARGE"] * 2 + [
        "OTHER"
    ] * 2


@pytest.mark.parametrize("limit", [HEADER_BYTES, LIMIT], ids=["none fits", "all fit"])
def test_a_batch_of_many_records_leaves_one_piece_through_all_of_it(limit: int) -> None:
    with LimitedRig(limit) as rig:
        handles = [rig.send("t", b"%d" % number) for number in range(300)]
        batches = list(dict.fromkeys(handle._batch for handle in handles))
        assert flush_failing(rig) == (300 if limit == HEADER_BYTES else 0)
        assert len(rig.broker.arrivals) > 10
        for batch in batches:
            assert isinstance(batch, Batch)
            assert batch.pieces is not None
            assert [(piece.first, piece.records) for piece in batch.pieces] == [(0, batch.records)]


# --- the end ------------------------------------------------------------------------------------------------


def stopped_after_the_first_piece(rig: LimitedRig) -> list[DeliveryHandle]:
    """Eight records of which two fit at a time: after the whole and its first half the first two are delivered."""
    handles = [rig.send("t", value) for value in numbered(8, 100)]
    rig.pipeline.stop_after = 3
    with pytest.raises(FlushTimeoutError):
        rig.producer.flush(0)
    until(lambda: resolved(handles) == 2)
    return handles


def test_close_in_the_middle_of_a_split_counts_what_is_lost() -> None:
    with LimitedRig(LIMIT) as rig:
        handles = stopped_after_the_first_piece(rig)
        assert rig.broker.values() == numbered(8, 100)[:2]
        with pytest.raises(FlushTimeoutError) as caught:
            rig.close()
        assert caught.value.records == 6
        assert [handle.result(0).offset for handle in handles[:2]] == [0, 1]
        assert {getattr(handle.exception(0), "name", "") for handle in handles[2:]} == {"PRODUCER_CLOSED"}
        stats = rig.producer.stats()
        found = stats.records_accepted, stats.records_delivered, stats.records_failed, stats.records_pending
        assert found == (8, 2, 6, 0)


def test_a_piece_whose_result_comes_while_the_children_end_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with LimitedRig(LIMIT) as rig:
        handles = stopped_after_the_first_piece(rig)
        until(lambda: rig.session.arena.batch_states.find(READY) >= 0)  # the next piece is made
        rig.thread.stop()
        stop = rig.coordinator._supervisor.stop

        def end_children() -> None:
            rig.pipeline.stop_after = 4
            while rig.pipeline.deliver_one() is not None:
                pass
            stop()

        monkeypatch.setattr(rig.coordinator._supervisor, "stop", end_children)
        with pytest.raises(FlushTimeoutError) as caught:
            rig.close()
        assert rig.broker.values() == numbered(8, 100)[:4]
        assert caught.value.records == 4
        assert [handle.exception(0) is None for handle in handles] == [True] * 4 + [False] * 4


def test_the_result_of_a_piece_lets_nobody_sleep() -> None:
    """Not the coordinator, were it just lying down, and not the worker that is to make the next piece."""
    with LimitedRig(LIMIT) as rig:
        handles = [rig.send("t", value) for value in numbered(8, 100)]
        rig.thread.stop()
        control, session = rig.coordinator.control, rig.session
        with session.lock:  # so that the background thread does not take the result in meanwhile
            session._next_nudge = time.monotonic() + 3600  # nor does it ring for nothing
            session.accumulator.seal_all()
            while session.arena.batch_states.find(PARTIAL) < 0:
                assert rig.pipeline.deliver_one() is not None
            assert session.accumulator.has_results()
            control.lie_down(FIRST_WORKER)
            control.bells[FIRST_WORKER].drain()
        assert select.select([control.bells[FIRST_WORKER]], [], [], WATCHDOG_S)[0], "no ring for the worker"
        until(lambda: resolved(handles) == 2)


# --- smaller batches from then on -------------------------------------------------------------------------------


def send_and_flush(rig: LimitedRig, count: int, topic: str = "t") -> list[tuple[int, int]]:
    """Send so many records of 100 bytes and flush; (records, error) of each batch that came to the broker."""
    before = len(rig.broker.arrivals)
    rig.send_many(topic, [b"x" * 100] * count)
    rig.flush()
    return [(arrival.records, arrival.error) for arrival in rig.broker.arrivals[before:]]


def test_a_topics_batches_become_smaller_at_once_and_grow_again_with_those_that_are_accepted() -> None:
    with LimitedRig(HEADER_BYTES + 1200, {"t": 1, "other": 1}) as rig:
        topics = rig.session._topics.known
        full = rig.producer.plan.batch_bytes // 108
        assert send_and_flush(rig, full, "other")[0] == (full, 10)
        assert topics["other"].batch_limit <= 1200
        sent = send_and_flush(rig, full)
        assert sent[0] == (full, 10), "another topic's batches are as they were"
        learnt = topics["t"].batch_limit
        assert 600 <= learnt <= 1200
        sent = send_and_flush(rig, 40)
        assert {error for _, error in sent} == {0}
        assert max(size for size, _ in sent) * 100 <= learnt * 1.2
        assert topics["t"].batch_limit > learnt
        rig.broker.limit = 1 << 30
        count_growth(rig, lambda: topics["t"].batch_limit)
        assert topics["t"].batch_limit >= rig.producer.plan.batch_bytes
        assert send_and_flush(rig, full) == [(full, 0)]


def test_what_is_learnt_speaks_of_uncompressed_bytes_as_batches_are_filled_by_those() -> None:
    values = [random.Random(number).randbytes(50).hex().encode() for number in range(37)]
    with LimitedRig(HEADER_BYTES + 1500, codec="zstd", compression_type="zstd") as rig:
        rig.send_many("t", values)
        rig.flush()
        sizes = [arrival.size - HEADER_BYTES for arrival in rig.broker.arrivals]
        raw_bytes = rig.producer.stats().record_bytes
        assert len(sizes) == 3
        assert sizes[0] < raw_bytes * 0.7, "it was compressed"
        assert rig.session._topics.known["t"].batch_limit == raw_bytes // 2


def count_growth(rig: LimitedRig, limit: Callable[[], int]) -> None:
    """Each batch that is accepted whole lets the next be larger, by a 64th."""
    while (before := limit()) < rig.producer.plan.batch_bytes:
        assert send_and_flush(rig, 1) == [(1, 0)]
        assert limit() == before + 1 + before // 64


def test_a_topic_that_was_never_refused_has_no_limit() -> None:
    with LimitedRig(1 << 30) as rig:
        send_and_flush(rig, 100)
        assert rig.session._topics.known["t"].batch_limit == NO_LIMIT
