"""What is known of the cluster and when to ask again, without a cluster."""

from __future__ import annotations

import sys
from array import array
from uuid import UUID

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.metadata import Cluster, RefreshSchedule
from slabpress.network.wire import BrokerAddress, Leaders, MetadataAnswer, TopicMetadata

ONE, TWO = BrokerAddress(1, "a", 9092), BrokerAddress(2, "b", 9092)
ID, OTHER_ID = UUID(int=1), UUID(int=2)


def answer(*topics: TopicMetadata, brokers: tuple[BrokerAddress, ...] = (ONE, TWO)) -> MetadataAnswer:
    return MetadataAnswer(0, 0, list(brokers), list(topics))


def leaders(*entries: tuple[int, int]) -> Leaders:
    """(leader, epoch) of the partitions 0, 1, 2 and so on."""
    return Leaders(array("i", [leader for leader, _ in entries]), array("i", [epoch for _, epoch in entries]))


def topic(leader: int, epoch: int, topic_id: UUID | None = ID, error: int = 0) -> TopicMetadata:
    return TopicMetadata("t", topic_id, error, leaders((leader, epoch)))


def several(*entries: tuple[int, int], topic_id: UUID | None = ID) -> TopicMetadata:
    return TopicMetadata("t", topic_id, 0, leaders(*entries))


def test_leaders_of_known_topics() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    assert cluster.leader("t", 0) == 1
    assert cluster.leader("t", 1) is None
    assert cluster.leader("t", -1) is None
    assert cluster.leader("u", 0) is None
    assert cluster.topic_id("t") == ID


def test_a_leader_without_an_address_is_none() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(3, 5)))
    assert cluster.leader("t", 0) is None


def test_an_answer_of_a_broker_that_lags_behind_changes_no_leader() -> None:
    """KIP-320: the leader epoch only grows."""
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    cluster.update(answer(topic(2, 4)))
    assert cluster.leader("t", 0) == 1
    cluster.update(answer(topic(2, 4)))
    assert cluster.leader("t", 0) == 1
    cluster.update(answer(topic(2, 6)))
    assert cluster.leader("t", 0) == 2


def test_an_epoch_that_went_back_is_believed_when_it_stays_so() -> None:
    """Or a topic that was created again would never be led again where topics have no ids."""
    cluster = Cluster()
    cluster.update(answer(topic(1, 5, None)))
    for _ in range(5):
        cluster.update(answer(topic(2, 0, None)))
        assert cluster.leader("t", 0) == 1
    cluster.update(answer(topic(2, 0, None)))
    assert cluster.leader("t", 0) == 2
    assert not cluster.hint("t", 0, 1, 0, [])
    assert cluster.hint("t", 0, 1, 1, [])


def test_answers_that_lag_behind_now_and_then_are_never_believed() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    for _ in range(4):
        for _ in range(4):
            cluster.update(answer(topic(2, 4)))
            assert cluster.leader("t", 0) == 1
        cluster.update(answer(topic(1, 5)))


def test_topics_that_were_created_again_are_told() -> None:
    cluster = Cluster()
    assert cluster.update(answer(topic(1, 5))) == set()
    assert cluster.update(answer(topic(2, 6))) == set()
    assert cluster.update(answer(topic(2, 0, OTHER_ID, error=3))) == set()
    assert cluster.update(answer(topic(2, 0, OTHER_ID))) == {"t"}
    assert cluster.update(answer(topic(2, 0, OTHER_ID))) == set()


def test_without_brokers_there_are_no_leaders_until_they_are_named_again() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    cluster.forget_brokers()
    assert cluster.leader("t", 0) is None
    cluster.update(answer(topic(1, 5)))
    assert cluster.leader("t", 0) == 1


def test_partitions_are_judged_one_by_one() -> None:
    cluster = Cluster()
    cluster.update(answer(several((1, 5), (1, 5), (1, 5))))
    cluster.update(answer(several((2, 4), (2, 5), (2, 6))))
    assert [cluster.leader("t", number) for number in range(3)] == [1, 2, 2]
    cluster.update(answer(several((2, 5), (1, 4), (1, 5))))
    assert [cluster.leader("t", number) for number in range(3)] == [2, 2, 2]


def test_partitions_come_and_go() -> None:
    cluster = Cluster()
    cluster.update(answer(several((1, 5))))
    cluster.update(answer(several((2, 4), (2, 0), (-1, 3))))
    assert [cluster.leader("t", number) for number in range(4)] == [1, 2, None, None]
    cluster.update(answer(several((2, 6), topic_id=OTHER_ID)))
    assert [cluster.leader("t", number) for number in range(2)] == [2, None]


def test_a_topic_is_kept_in_8_bytes_a_partition() -> None:
    cluster = Cluster()
    cluster.update(answer(several(*[(1, 5)] * 10_000)))
    kept = cluster.topics["t"].leaders
    assert sys.getsizeof(kept.nodes) + sys.getsizeof(kept.epochs) < 80_500


def test_a_topic_created_again_starts_its_epochs_anew() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    cluster.update(answer(topic(2, 0, OTHER_ID)))
    assert cluster.leader("t", 0) == 2


def test_brokers_without_epochs_are_believed() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, -1, None)))
    cluster.update(answer(topic(2, -1, None)))
    assert cluster.leader("t", 0) == 2
    cluster.update(answer(topic(1, 7, None)))
    cluster.update(answer(topic(2, -1, None)))
    assert cluster.leader("t", 0) == 2


def test_an_error_keeps_what_is_known() -> None:
    cluster = Cluster()
    cluster.update(answer(topic(1, 5)))
    cluster.update(answer(topic(-1, -1, None, error=5)))
    assert cluster.leader("t", 0) == 1
    cluster.forget_all_but(["u"])
    assert cluster.leader("t", 0) is None


def test_a_hint_is_taken_when_it_is_newer() -> None:
    """KIP-951."""
    cluster = Cluster()
    cluster.update(answer(topic(1, 5), brokers=(ONE,)))
    assert not cluster.hint("t", 0, 2, 5, [TWO])
    assert not cluster.hint("t", 0, 3, 6, [TWO])
    assert cluster.brokers == {1: ONE}, "an address is kept only with a leader that is believed"
    assert cluster.hint("t", 0, 2, 6, [TWO])
    assert cluster.leader("t", 0) == 2
    assert cluster.brokers[2] == TWO


def test_a_hint_is_of_one_partition_and_answers_that_lag_behind_it_change_nothing() -> None:
    cluster = Cluster()
    cluster.update(answer(several((1, 5), (1, 5))))
    assert cluster.hint("t", 1, 2, 6, [])
    cluster.update(answer(several((1, 5), (1, 5))))
    assert [cluster.leader("t", number) for number in range(2)] == [1, 2]


def test_a_hint_for_what_is_not_known_is_no_news() -> None:
    cluster = Cluster()
    assert not cluster.hint("t", 0, 1, 6, [ONE])
    cluster.update(answer(several((1, 5))))
    for partition in (-1, 1, 2**31 - 1):
        assert not cluster.hint("t", partition, 2, 6, [TWO])
    assert cluster.leader("t", 0) == 1


def schedule() -> RefreshSchedule:
    return RefreshSchedule(1000, Backoff(10, 40, lambda: 0.5))


def due_ms(refresh: RefreshSchedule) -> float:
    assert refresh.due_at_ns is not None
    return refresh.due_at_ns / NS_PER_MS


def test_nothing_is_due_until_something_is_wanted() -> None:
    refresh = schedule()
    assert not refresh.is_due(10**18)
    refresh.now(7)
    assert refresh.is_due(7)


def test_it_is_asked_again_on_age() -> None:
    refresh = schedule()
    refresh.now(0)
    refresh.sent()
    assert not refresh.is_due(10**18)
    refresh.answered(0, complete=True)
    assert due_ms(refresh) == 1000


def test_an_age_of_nothing_is_no_storm() -> None:
    refresh = RefreshSchedule(0, Backoff(10, 40, lambda: 0.5))
    refresh.sent()
    refresh.answered(0, complete=True)
    assert due_ms(refresh) == 10


def test_what_is_missing_is_asked_for_with_growing_delays() -> None:
    refresh = schedule()
    delays = []
    for _ in range(5):
        refresh.sent()
        refresh.answered(0, complete=False)
        delays.append(due_ms(refresh))
    assert delays == [10, 20, 40, 40, 40]
    refresh.sent()
    refresh.answered(0, complete=True)
    refresh.soon(0)
    assert due_ms(refresh) == 10


def test_something_new_does_not_wait_for_the_backoff() -> None:
    refresh = schedule()
    refresh.sent()
    refresh.answered(0, complete=False)
    refresh.soon(5)
    assert not refresh.is_due(5)
    refresh.now(5)
    assert refresh.is_due(5)


def test_a_wish_during_a_request_leads_to_another() -> None:
    refresh = schedule()
    refresh.now(0)
    refresh.sent()
    refresh.soon(1)
    assert not refresh.is_due(1)
    refresh.answered(2, complete=True)
    assert due_ms(refresh) < 11


def test_a_lost_request_is_sent_again() -> None:
    refresh = schedule()
    refresh.now(0)
    refresh.sent()
    refresh.failed(0)
    assert due_ms(refresh) == 10
    refresh.failed(0)
    assert due_ms(refresh) == 10
