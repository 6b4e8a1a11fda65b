"""The network process's native steps, against the same steps one by one, and what they take note of."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crc32c import crc32c

from slabpress._native import NONE, SendPoint
from slabpress.network.counters import Counters
from slabpress.results import DELIVERED
from slabpress.shm.layout import NETWORK_COUNTERS, TEXT_BYTES
from slabpress.shm.states import COMPRESSING, DONE, OUTPUT_IN_FLIGHT, PARTIAL, READY
from tests.network.rig import OLD_TIMESTAMP_MS, Rig
from tests.shm.faults import Life, mortal
from tests.support.reference_batch import decode_batch

NO_STATE = -1


@pytest.fixture(params=[False, True], ids=["compressing", "direct"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """An arena of either kind."""
    with Rig("127.0.0.1:9", start=False, slabs=8, slab_bytes=4096, direct=request.param) as rig:
        yield rig


def tables(rig: Rig) -> bytes:
    """All of the arena but its blocks."""
    return bytes(rig.arena.view[: rig.arena.layout.slabs])


def what_it_leaves(rig: Rig, point: Any, act: Callable[[Any], None]) -> bytes:
    """The tables after a step, which is taken back."""
    before = tables(rig)
    act(point)
    after = tables(rig)
    rig.arena.view[: len(before)] = before
    return after


@pytest.mark.parametrize(
    "act",
    [
        lambda point: point.start(0),
        lambda point: point.end(0, 3, DELIVERED, -1, False, 1 << 40, 5, b"", DONE),
        lambda point: point.end(0, 3, DELIVERED, -1, False, 1 << 40, 5, b"", NO_STATE),
        lambda point: point.end(0, 2, 87, 1, True, -1, -1, b"INVALID_RECORD: why", PARTIAL),
        lambda point: point.end(0, 2, -1001, -1, True, -1, -1, b"w" * (TEXT_BYTES + 9), DONE),
    ],
    ids=["start", "delivered", "delivered, to be gone on with", "a piece that failed", "a long text"],
)
def test_a_native_step_leaves_what_its_stores_one_by_one_leave(rig: Rig, act: Callable[[Any], None]) -> None:
    assert rig.send("t", 3, b"x" * 6000) == 0
    one_by_one = mortal(rig.arena, Life()).send_point
    assert type(rig.arena.send_point) is SendPoint
    assert type(one_by_one) is not SendPoint
    left = what_it_leaves(rig, rig.arena.send_point, act)
    assert left == what_it_leaves(rig, one_by_one, act)
    assert left != tables(rig)


def test_a_batch_that_cannot_be_freed_has_its_result_and_is_not_done(rig: Rig) -> None:
    """Result, outputs, state, in this order: what fails in the middle shows which stores came before."""
    index = rig.send("t", 3, b"x" * 6000)
    first, second = rig.arena.outputs.chain(rig.descriptors.output(index).first_output)
    layout = rig.arena.layout
    nexts = layout.slab_nexts if rig.arena.is_direct else layout.output_nexts
    rig.arena.memory.store_u32(nexts + 4 * second, 1 << 30)
    before = rig.counter("batches_delivered")
    with pytest.raises(ValueError, match=f"chain from block {first} leaves the table"):
        rig.arena.send_point.end(index, 1, DELIVERED, -1, False, 77, -1, b"", DONE)
    assert rig.descriptors.result(index).base_offset == 77
    assert rig.descriptors.output(index).first_output == first
    assert rig.arena.payload_states.load(first) == OUTPUT_IN_FLIGHT
    assert rig.arena.batch_states.load(index) == READY
    assert rig.counter("batches_delivered") == before


def test_a_header_and_its_checksum(rig: Rig) -> None:
    index = rig.send("t", 3, b"a" * 5000)
    assert rig.arena.send_point.measure(index)[0] == 1
    parts = rig.arena.send_point.make(index, 1, 1 << 40, 7, (1 << 31) - 1, crc32c)
    header, records = decode_batch(b"".join(parts))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (1 << 40, 7, (1 << 31) - 1)
    assert [record.value for record in records] == [b"a" * 5000]
    parts = rig.arena.send_point.make(index, 1, -1, -1, -1, crc32c, OLD_TIMESTAMP_MS)
    assert bytes(parts[0][35:57]) == struct.pack(">qqhi", OLD_TIMESTAMP_MS, -1, -1, -1)


def test_blocks_that_lie_together_are_sent_as_one_part(rig: Rig) -> None:
    index = rig.send("t", 3, b"a" * 7000)
    first, second = rig.arena.outputs.chain(rig.descriptors.output(index).first_output)
    assert second == first + 1
    parts = rig.arena.send_point.make(index, 1, -1, -1, -1, crc32c)
    assert [len(part) for part in parts] == [61, rig.descriptors.output(index).payload_bytes]


def test_an_index_that_no_batch_has_is_refused(rig: Rig) -> None:
    inbox, point = rig.arena.inbox(), rig.arena.send_point
    for index in (-1, rig.arena.geometry.batch_count):
        for call in (inbox.await_ready, point.measure, point.start):
            with pytest.raises(IndexError, match=f"batch {index} of"):
                call(index)


def test_seals_are_news_until_they_were_followed(rig: Rig) -> None:
    inbox = rig.arena.inbox()
    assert inbox.has_news()
    assert inbox.take_wanted()
    assert not inbox.has_news()
    assert inbox.next_sealed() is None
    first, second = rig.send("t", 3, b"x"), rig.send("t", 4, b"x")
    inbox.take_wanted()
    assert inbox.has_news()
    entries = [inbox.next_sealed(), inbox.next_sealed()]
    assert [entry[:3] for entry in entries if entry] == [(first, 1, READY), (second, 2, READY)]
    assert [entry[3:] for entry in entries if entry] == [
        (rig.descriptors.sealed(index).partition_index, rig.descriptors.sealed(index).created_ns)
        for index in (first, second)
    ]
    assert inbox.next_sealed() is None
    assert not inbox.has_news()


def test_topics_that_are_asked_for_are_news_until_they_were_taken(rig: Rig) -> None:
    inbox = rig.arena.inbox()
    assert inbox.take_wanted()
    rig.topics.request_refresh()
    assert inbox.has_news()
    assert inbox.take_wanted()
    assert not inbox.take_wanted()
    assert not inbox.has_news()


def test_a_batch_that_becomes_ready_is_news_if_it_is_awaited_and_only_once(rig: Rig) -> None:
    awaited, other = rig.send("t", 3, b"x"), rig.send("t", 4, b"x")
    inbox = rig.arena.inbox()
    inbox.cursor = rig.arena.seal_tail
    inbox.take_wanted()
    assert not inbox.has_news()
    rig.arena.batch_states.store(awaited, COMPRESSING)
    inbox.await_ready(awaited)
    inbox.await_ready(awaited)
    assert not inbox.has_news()
    assert inbox.newly_ready() == []
    rig.arena.batch_states.store(awaited, READY)
    assert inbox.has_news()
    assert inbox.newly_ready() == [awaited]
    assert inbox.newly_ready() == []
    assert not inbox.has_news()
    assert other != awaited


def test_news_of_many_batches_are_all_told(rig: Rig) -> None:
    count = rig.arena.geometry.batch_count
    inbox = rig.arena.inbox()
    inbox.take_wanted()
    for index in range(count):
        inbox.await_ready(index)
    for index in range(0, count, 3):
        rig.arena.batch_states.store(index, READY)
    assert inbox.newly_ready() == list(range(0, count, 3))
    for index in range(count):
        rig.arena.batch_states.store(index, READY)
    assert inbox.newly_ready() == [index for index in range(count) if index % 3]
    assert NONE not in inbox.newly_ready()


def test_a_request_counts_with_its_bytes(rig: Rig) -> None:
    counters = Counters(rig.arena.memory)
    counters.count_request(100)
    counters.count_request(11)
    counted = {name: counters.read(name) for name in NETWORK_COUNTERS}
    assert {name: count for name, count in counted.items() if count} == {"requests": 2, "request_bytes": 111}
