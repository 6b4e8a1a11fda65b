"""What the roles tell each other about batches and topics, field by field."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress._native import NONE, OpenBatch, OpeningPoint
from slabpress.shm import layout as at
from slabpress.shm.descriptors import BLANK, Descriptors, Output, Result
from slabpress.shm.states import FREE, OPEN, ORPHAN
from slabpress.shm.topics import TopicAnswer, TopicTable
from tests.shm.kit import small_arena

_I32 = st.integers(-(1 << 31), (1 << 31) - 1)
_I64 = st.integers(-(1 << 63), (1 << 63) - 1)
_U32 = st.integers(0, (1 << 32) - 1)


@given(st.builds(Result, _I32, _I32, _I64, _I64, st.booleans(), st.text(max_size=200)))
def test_a_result_comes_back_with_its_text_cut_to_what_fits(result: Result) -> None:
    with small_arena() as arena:
        descriptors = Descriptors(arena)
        start = arena.layout.descriptors
        first, last = slice(start, start + at.DESCRIPTOR_BYTES), slice(start + 2 * at.DESCRIPTOR_BYTES, None)
        neighbours = bytes(arena.view[first]), bytes(arena.view[last])
        descriptors.set_result(1, result)
        found = descriptors.result(1)
        assert found._replace(text="") == result._replace(text="")
        data = result.text.encode()
        assert found.text == data[: at.TEXT_BYTES].decode(errors="ignore")
        if len(data) <= at.TEXT_BYTES:
            assert found.text == result.text
        assert (bytes(arena.view[first]), bytes(arena.view[last])) == neighbours


def test_a_text_is_never_cut_inside_a_character() -> None:
    with small_arena() as arena:
        descriptors = Descriptors(arena)
        neighbour = slice(arena.layout.descriptors + at.DESCRIPTOR_BYTES, None)
        before = bytes(arena.view[neighbour])
        for lead in range(4):
            text = "x" * lead + "☃" * at.TEXT_BYTES
            descriptors.set_result(0, Result(0, -1, -1, -1, retriable=False, text=text))
            found = descriptors.result(0).text
            assert text.startswith(found)
            assert at.TEXT_BYTES - 3 < len(found.encode()) <= at.TEXT_BYTES
        assert bytes(arena.view[neighbour]) == before


@settings(max_examples=30)
@given(st.builds(Output, _U32, _U32, _U32, _U32), _U32, _U32, st.integers(0, (1 << 64) - 1), _U32, st.integers(0, 9))
def test_every_field_is_kept_apart(
    output: Output, worker: int, attempts: int, seal_number: int, partition: int, created: int
) -> None:
    with small_arena() as arena:
        descriptors = Descriptors(arena)
        descriptors.open(1, partition, created)
        descriptors.set_result(1, Result(1, 2, 3, 4, retriable=True, text="kept"))
        descriptors.set_output(1, output)
        descriptors.set_worker(1, worker)
        descriptors.set_attempts(1, attempts)
        descriptors.set_seal_number(1, seal_number)
        descriptors.header(1)[:] = b"\xff" * at.BATCH_HEADER_BYTES
        assert descriptors.output(1) == output
        assert descriptors.worker(1) == worker
        assert descriptors.attempts(1) == attempts
        assert descriptors.seal_number(1) == seal_number
        assert descriptors.sealed(1) == (0, 0, 0, 0, created, partition, NONE)
        assert descriptors.result(1) == (1, 2, 3, 4, True, "kept")


def test_a_descriptor_that_is_opened_again_remembers_nothing() -> None:
    with small_arena() as arena:
        descriptors = Descriptors(arena)
        descriptors.open(2, 1, 5)
        descriptors.set_output(2, Output(1, 2, 3, 4))
        descriptors.set_worker(2, ORPHAN)
        descriptors.set_attempts(2, 9)
        descriptors.set_seal_number(2, 77)
        descriptors.open(2, 3, 6)
        assert descriptors.sealed(2) == (0, 0, 0, 0, 6, 3, NONE)
        assert descriptors.output(2).first_output == NONE
        assert descriptors.output(2).payload_bytes == 0
        assert (descriptors.worker(2), descriptors.attempts(2), descriptors.seal_number(2)) == (0, 0, 0)


def test_what_the_coordinator_opens_natively_is_what_open_prepares() -> None:
    with small_arena() as arena:
        table = slice(arena.layout.descriptors, arena.layout.descriptors + 3 * at.DESCRIPTOR_BYTES)
        arena.view[table] = b"\xa5" * 3 * at.DESCRIPTOR_BYTES
        Descriptors(arena).open(1, 7, 1 << 40)
        prepared = bytes(arena.view[table])
        arena.view[table] = b"\xa5" * 3 * at.DESCRIPTOR_BYTES
        point = OpeningPoint(
            arena.memory,
            arena.batch_states,
            FREE,
            OPEN,
            arena.layout.descriptors,
            at.DESCRIPTOR_BYTES,
            BLANK,
            at.CREATED_AT,
            at.PARTITION_INDEX_AT,
        )
        point.open(OpenBatch(1, 0, created_ns=1 << 40), 7)
        assert bytes(arena.view[table]) == prepared
        assert arena.batch_states.load(1) == OPEN
        with pytest.raises(IndexError):
            point.open(OpenBatch(arena.geometry.batch_count, 0), 7)


def test_a_topic_is_asked_for_answered_and_forgotten() -> None:
    with small_arena(topics=3) as arena:
        table = TopicTable(arena)
        assert table.wanted() == {}
        table.want(1, "clicks")
        table.want(2, "x" * 249)
        assert table.wanted() == {"clicks": 1, "x" * 249: 2}
        assert table.wanted_version() == 2
        assert table.answer(1) == TopicAnswer(0, 0, 0)
        table.set_answer(1, None, 5)
        assert table.answer(1) == TopicAnswer(1, 0, 5)
        table.set_answer(1, 12, 0)
        assert table.answer(1) == TopicAnswer(2, 12, 0)
        table.set_answer(1, None, -1)
        assert table.answer(1) == TopicAnswer(3, 12, -1)
        assert table.metadata_version() == 3
        assert table.answer(2) == TopicAnswer(0, 0, 0)
        table.unwant(1)
        table.request_refresh()
        assert table.wanted() == {"x" * 249: 2}
        assert table.wanted_version() == 4


def test_partitions_know_their_topic_and_number() -> None:
    with small_arena(partitions=3) as arena:
        table = TopicTable(arena)
        for index in range(3):
            table.set_partition(index, 10 + index, 20 + index)
        assert [table.partition(index) for index in range(3)] == [(10, 20), (11, 21), (12, 22)]
