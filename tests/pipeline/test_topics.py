"""Topics: their names, the table's few entries, and who is told what about them."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from slabpress.errors import RecordTypeError, TooManyTopicsError, TopicNameError
from slabpress.pipeline.topics import check_topic_name
from tests.pipeline.instant import parts


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 249, "...", "._-", "__consumer_offsets"])
def test_names_that_kafka_allows(name: str) -> None:
    check_topic_name(name)


_RULE = " is not a name that Kafka allows: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', but not '.' or '..'"


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "a\n", "a\0", "x:y", "٣"])
def test_names_that_kafka_does_not_allow(name: str) -> None:
    with pytest.raises(TopicNameError) as caught:
        check_topic_name(name)
    assert str(caught.value) == f"topic {name!r}{_RULE}"


def test_a_name_that_is_too_long_is_shown_in_short() -> None:
    with pytest.raises(TopicNameError) as caught:
        check_topic_name("x" * 250)
    assert str(caught.value) == f"topic {'x' * 40 + '... (250 characters)'!r}{_RULE}"


@pytest.mark.parametrize("name", [None, b"bytes", 3])
def test_a_name_is_a_str(name: Any) -> None:
    with pytest.raises(RecordTypeError, match=f"topic must be a str, not {type(name).__name__}"):
        check_topic_name(name)


def test_a_topic_becomes_known_with_its_first_partitions_and_grows() -> None:
    with parts() as rig:
        registry, table = rig.registry, rig.table
        assert not registry.refresh()
        registry.want("t")
        table.set_answer(0, None, 5)
        assert registry.refresh()
        assert registry.known == {}
        assert registry.error_code("t") == 5
        table.set_answer(0, 2, 0)
        assert registry.refresh()
        assert not registry.refresh()
        topic = registry.known["t"]
        assert len(topic.open) == 2
        assert topic.sticky in (0, 1)
        registry.give_up("t", 0.0)
        table.set_answer(0, 4, 0)
        assert registry.refresh()
        assert registry.known["t"] is topic
        assert len(topic.open) == 4
        table.set_answer(0, 1, 0)  # Kafka never takes a partition away
        registry.refresh()
        assert len(topic.open) == 4


def test_a_topic_that_nobody_waits_for_any_more_is_asked_for_a_while_longer() -> None:
    with parts() as rig:
        for _ in range(2):
            rig.registry.want("t")
        rig.registry.give_up("t", 100.0)
        assert rig.registry.next_idle() is None
        rig.registry.give_up("t", 100.0)
        due = rig.registry.next_idle()
        assert due is not None
        rig.registry.drop_idle(due - 0.001)
        assert rig.table.wanted() == {"t": 0}
        rig.registry.drop_idle(due)
        assert rig.table.wanted() == {}
        assert rig.registry.next_idle() is None
        rig.registry.want("t")
        rig.registry.drop_idle(due + 1000)
        assert list(rig.table.wanted()) == ["t"]


def test_a_topic_that_is_wanted_again_in_time_is_not_dropped() -> None:
    with parts() as rig:
        rig.registry.want("t")
        rig.registry.give_up("t", 0.0)
        rig.registry.want("t")
        assert rig.registry.next_idle() is None
        rig.registry.drop_idle(1e9)
        assert rig.table.wanted() == {"t": 0}


def test_a_known_topic_is_asked_for_for_ever() -> None:
    with parts() as rig:
        rig.topic("t", 1)
        rig.registry.give_up("t", 0.0)
        assert rig.table.wanted() == {"t": 0}


def test_an_answer_of_a_former_topic_is_not_the_new_ones() -> None:
    with parts(max_topic_partitions=1) as rig:
        assert rig.table.topic_count == 1
        rig.registry.want("a")
        rig.registry.give_up("a", 0.0)
        rig.table.set_answer(0, 9, 3)  # it was under way
        rig.registry.want("b")
        rig.registry.refresh()
        assert rig.registry.known == {}
        assert rig.registry.error_code("b") == 0
        rig.table.set_answer(0, 2, 0)
        rig.registry.refresh()
        assert len(rig.registry.known["b"].open) == 2


@pytest.mark.parametrize("happens", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("step", ["answer", "want", "popleft"])
def test_a_topic_that_a_signal_handler_left_half_wanted_is_wanted_by_nobody_and_may_be_again(
    step: str, happens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parts() as rig:
        registry, table = rig.registry, rig.table
        names = [f"t{number}" for number in range(table.topic_count)]

        class Entries(deque[int]):
            """A deque's own methods cannot be replaced."""

        with monkeypatch.context() as patch:
            patch.setattr(registry, "_free_topics", Entries(registry._free_topics))
            patched = registry._free_topics if step == "popleft" else table
            real = getattr(patched, step)

            def interrupted(*arguments: Any) -> None:
                if happens:
                    real(*arguments)
                raise KeyboardInterrupt

            patch.setattr(patched, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                registry.want("t0")
            left = list(registry._free_topics)
        registry._free_topics = deque(left)
        assert table.wanted() == {}
        for name in names:
            registry.want(name)
        assert sorted(table.wanted()) == sorted(names)
        assert not any(registry.error_code(name) for name in names)


def test_one_topic_too_many_is_refused_with_the_number_that_fits() -> None:
    with parts(max_topic_partitions=1) as rig:
        rig.registry.want("a")
        for _ in range(2):
            with pytest.raises(TooManyTopicsError) as caught:
                rig.registry.want("b")
            assert str(caught.value) == (
                "topic 'b' is one too many: the arena has room for 1 topics; raise max_topic_partitions"
            )
        rig.registry.give_up("a", 0.0)
        rig.registry.want("b")
        assert rig.table.wanted() == {"b": 0}


def test_one_partition_too_many_is_refused_and_the_others_go_on() -> None:
    with parts(max_topic_partitions=2) as rig:
        topic = rig.topic("t", 3)
        assert rig.registry.partition_index(topic, 2) == 0
        assert rig.registry.partition_index(topic, 0) == 1
        for _ in range(2):
            with pytest.raises(TooManyTopicsError) as caught:
                rig.registry.partition_index(topic, 1)
            assert str(caught.value) == (
                "topic-partition t-1 is one too many: the arena has room for 2; raise max_topic_partitions"
            )
        assert rig.registry.partition_index(topic, 2) == 0
        assert rig.table.partition(0) == (topic.index, 2)
        assert rig.table.partition(1) == (topic.index, 0)
