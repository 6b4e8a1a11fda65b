"""The arena's side of the network process: headers, states, counters, and death at every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from slabpress._native import NONE
from slabpress.network.batches import ArenaBatches
from slabpress.network.outcomes import Outcome
from slabpress.network.partition import Batch
from slabpress.shm.states import DONE, FREE, IN_FLIGHT, OUTPUT_FREE, OUTPUT_IN_FLIGHT, OUTPUT_READY, READY
from tests.network.rig import OLD_TIMESTAMP_MS, Record, Rig
from tests.shm.faults import Killed, Life, mortal
from tests.support.reference_batch import decode_batch

SUCCESS = Outcome(0, base_offset=5)


@pytest.fixture(params=[False, True], ids=["compressing", "direct"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """An arena of either kind."""
    with Rig("127.0.0.1:9", start=False, slabs=8, slab_bytes=4096, direct=request.param) as rig:
        yield rig


@pytest.fixture
def batches(rig: Rig) -> ArenaBatches:
    return ArenaBatches(
        0,
        rig.arena,
        {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
    )


def one(rig: Rig, batches: ArenaBatches, *values: bytes) -> Batch:
    rig.send("t", 3, *(values or (b"x" * 6000,)))
    [batch] = batches.follow()
    return batch


def test_follows_every_seal_once_in_order(rig: Rig, batches: ArenaBatches) -> None:
    before = time.monotonic_ns()
    indices = [rig.seal("t", 3, [Record(b"x")]), rig.seal("t", 4, [Record(b"y")])]
    batches.inbox.take_wanted()
    news = [batches.has_arrivals]
    found = list(batches.follow())
    news.append(batches.has_arrivals)
    assert news == [True, False]
    assert [batch.index for batch in found] == indices
    assert [(batch.queue.topic, batch.queue.number, batch.seal_number) for batch in found] == [("t", 3, 1), ("t", 4, 2)]
    assert found[0].deadline_ns >= before + 1_000_000_000
    assert list(batches.follow()) == []
    assert one(rig, batches).queue is found[0].queue


def test_a_successor_finds_what_is_older_than_the_ring_by_the_time_it_follows(rig: Rig, batches: ArenaBatches) -> None:
    waiting = one(rig, batches)
    successor = ArenaBatches(
        0,
        rig.arena,
        {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
    )
    successor.take_over()
    # What goes on meanwhile comes round the ring and overwrites the entry.
    for _ in range(rig.arena.geometry.seal_ring_entries):
        index = rig.send("t", 4, b"x")
        rig.arena.outputs.mark(rig.descriptors.output(index).first_output, OUTPUT_FREE)
        rig.arena.batch_states.store(index, FREE)
    assert [batch.index for batch in successor.follow()] == [waiting.index]


def test_follows_round_the_ring_many_times(rig: Rig, batches: ArenaBatches) -> None:
    for number in range(1, 3 * rig.arena.geometry.seal_ring_entries):
        batch = one(rig, batches, b"x")
        assert batch.seal_number == number
        batches.start(batch)
        batches.finish(batch, SUCCESS)
        rig.result(batch.index)


@pytest.mark.parametrize("codec", range(5))
def test_header_is_that_of_a_version_2_batch(rig: Rig, batches: ArenaBatches, codec: int) -> None:
    if rig.arena.is_direct:
        codec = 0
    index = rig.seal("t", 3, [Record(b"a" * 5000, b"k", OLD_TIMESTAMP_MS), Record(b"b", None, OLD_TIMESTAMP_MS - 9)])
    rig.compress(index, codec=codec, payload=None if codec == 0 else b"z" * 5000)
    [batch] = batches.follow()
    batches.make_bytes(batch)
    data = b"".join(batch.parts)
    assert len(data) == batch.size
    if codec == 0:
        header, records = decode_batch(data)
        assert [record.value for record in records] == [b"a" * 5000, b"b"]
        assert (header.base_timestamp, header.max_timestamp) == (OLD_TIMESTAMP_MS, OLD_TIMESTAMP_MS)
    assert int.from_bytes(data[21:23], "big") == codec
    assert int.from_bytes(data[57:61], "big") == 2
    batches.make_bytes(batch)
    assert b"".join(batch.parts) == data


def test_states_of_a_try_and_a_retry(rig: Rig, batches: ArenaBatches) -> None:
    batch = one(rig, batches)
    outputs = rig.arena.outputs.chain(rig.descriptors.output(batch.index).first_output)
    for attempt in (1, 2):
        batches.start(batch)
        assert batches.attempts(batch) == attempt
        assert rig.arena.batch_states.load(batch.index) == IN_FLIGHT
        assert {rig.arena.payload_states.load(output) for output in outputs} == {OUTPUT_IN_FLIGHT}
        batches.put_back(batch)
        assert rig.arena.batch_states.load(batch.index) == READY
        assert {rig.arena.payload_states.load(output) for output in outputs} == {OUTPUT_READY}
    assert rig.counter("retries") == 2
    batches.finish(batch, SUCCESS)
    assert {rig.arena.payload_states.load(output) for output in outputs} == {OUTPUT_FREE}
    assert rig.result(batch.index).base_offset == 5


def test_counters_of_success_and_failure(rig: Rig, batches: ArenaBatches) -> None:
    for outcome in (SUCCESS, Outcome(10, "too large")):
        batches.finish(one(rig, batches, b"a", b"b"), outcome)
    names = ("records_delivered", "batches_delivered", "records_failed", "batches_failed")
    assert [rig.counter(name) for name in names] == [2, 1, 2, 1]
    assert rig.counter("payload_bytes_delivered") > 2


def arena_for(rig: Rig, life: Life) -> ArenaBatches:
    """The batches of a process that dies after so many stores to the arena."""
    return ArenaBatches(
        0,
        mortal(rig.arena, life),
        {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
    )


def dies(act: Callable[[], object]) -> bool:
    """Whether the process dies while it does something."""
    try:
        act()
    except Killed:
        return True
    return False


@pytest.mark.parametrize("outcome", [SUCCESS, Outcome(10, "no")])
@pytest.mark.parametrize("sent", [True, False])
def test_killed_before_any_store_of_finish_a_successor_makes_order(rig: Rig, outcome: Outcome, sent: bool) -> None:
    """No output buffer is lost, none is freed twice, and a result that was written stands."""
    endings = set()
    for step in range(20):
        life = Life()
        dead = arena_for(rig, life)
        batch = one(rig, dead)
        if sent:
            dead.start(batch)
        life.left = step
        killed = dies(lambda: dead.finish(batch, outcome))  # noqa: B023 - called at once
        held = rig.descriptors.output(batch.index).first_output
        if killed and held == NONE:
            # What is free may be another batch's by now: the successor must not touch it.
            other = rig.seal("t", 9, [Record(b"other")])
            rig.compress(other)
        heir = ArenaBatches(
            0,
            rig.arena,
            {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
        )
        heir.take_over()
        for found in heir.follow():
            assert rig.arena.batch_states.load(found.index) == READY
            heir.make_bytes(found)
            heir.start(found)
            heir.finish(found, SUCCESS)
        endings.add(rig.result(batch.index).code)
        for index in rig.arena.batch_states.find_all(DONE):
            rig.result(index)
        assert rig.outputs_are_free()
        if not killed:
            break
    else:
        pytest.fail("finish never came to its end")
    assert step > 4
    assert endings == {0, outcome.code}


def test_killed_before_any_store_of_start_a_successor_sends_it(rig: Rig) -> None:
    for step in range(10):
        life = Life()
        dead = arena_for(rig, life)
        batch = one(rig, dead)
        dead.make_bytes(batch)
        expected = b"".join(batch.parts)
        life.left = step
        killed = dies(lambda: dead.start(batch))  # noqa: B023 - called at once
        heir = ArenaBatches(
            0,
            rig.arena,
            {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
        )
        heir.take_over()
        [found] = heir.follow()
        heir.make_bytes(found)
        assert b"".join(found.parts) == expected
        heir.finish(found, SUCCESS)
        rig.result(found.index)
        assert rig.outputs_are_free()
        if not killed:
            return
    pytest.fail("start never came to its end")


def test_a_successor_follows_only_what_is_not_done(rig: Rig, batches: ArenaBatches) -> None:
    done, waiting = rig.send("t", 0, b"a"), rig.send("t", 1, b"b")
    first, _ = batches.follow()
    batches.finish(first, SUCCESS)
    sealed = rig.seal("t", 0, [Record(b"c")])
    heir = ArenaBatches(
        0,
        rig.arena,
        {"acks": -1, "delivery_timeout_ms": 1000, "max_request_size": 1 << 20, "enable_idempotence": False},
    )
    heir.take_over()
    assert [batch.index for batch in heir.follow()] == [waiting, sealed]
    assert rig.done(done)
