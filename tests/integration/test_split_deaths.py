"""Workers and the network process killed at random while every batch is split.

What holds: no record is lost, doubled or out of order, and every handle tells the truth. Without idempotence a death
of the network process may double some: the one batch or piece that a topic-partition had on the wire is sent again, so
that a log has it twice, at once or a little later; apart from such repetitions the order is that of send().
"""

from __future__ import annotations

import itertools
import random
import threading
from typing import Any, Final

import pytest

from slabpress import Producer
from slabpress._native import NO_LIMIT
from slabpress.shm.control import FIRST_WORKER, NETWORK
from slabpress.shm.states import COMPRESSING, PROCESS_RUNNING
from tests.integration.test_split import (
    SETTINGS,
    WAIT_S,
    Sent,
    check_all_free,
    check_offsets,
    expected_of,
    flush,
    is_too_large,
    logs_of,
    make_topic,
    parts_of,
    send_in_thread,
)
from tests.support.kafka import KafkaCluster
from tests.support.kafka_install import wait_until

pytestmark = pytest.mark.kafka

KILLS: Final = 10
FIRST: Final = b"first"


@pytest.fixture(autouse=True)
def no_pause_after_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slabpress.pipeline.supervisor._BACKOFF_S", 0.0)


class Storm:
    """Records are sent all the time, and children killed meanwhile.

    Attributes:
        sent: what was accepted.
        kills: how many children were killed.
    """

    def __init__(self, producer: Producer, topic: str) -> None:
        self.producer = producer
        self.topic = topic
        self.sent: list[Sent] = []
        self.kills = 0
        self._rng = random.Random()

    def kill_one(self, slot: int) -> None:
        """Send some, kill a child after some splits more, and wait for its successor."""
        # Else batches would be small enough after the first ones.
        self.producer._session._topics.known[self.topic].batch_limit = NO_LIMIT
        thread = send_in_thread(self.producer, self.topic, self.kills, 150, self.sent)
        wanted = self._splits() + self._rng.randrange(20)
        wait_until(lambda: self._splits() >= wanted or self._is_idle(thread), "splits", WAIT_S, 0.001)
        if slot != NETWORK:
            states = self.producer._session.arena.batch_states
            wait_until(lambda: states.find(COMPRESSING) >= 0 or self._is_idle(thread), "work", WAIT_S, 0)
        self._kill(slot)
        thread.join(WAIT_S)
        assert not thread.is_alive()

    def _splits(self) -> int:
        return self.producer.stats().network["splits"]

    def _is_idle(self, thread: threading.Thread) -> bool:
        return not thread.is_alive() and self.producer.stats().records_pending == 0

    def _kill(self, slot: int) -> None:
        [child] = [child for child in self.producer._coordinator._supervisor.children if child.role.slot == slot]
        control = self.producer._coordinator.control
        wait_until(
            lambda: control.state(slot) == PROCESS_RUNNING and child.process is not None, "a child", WAIT_S, 0.001
        )
        process = child.process
        assert process is not None
        process.kill()
        self.kills += 1
        wait_until(lambda: child.process not in (process, None), "another child", WAIT_S, 0.001)


@pytest.fixture(params=["lz4", "none"])
def codec(request: pytest.FixtureRequest) -> str:
    """Without compression workers make pieces, of slabs, and nothing else."""
    return str(request.param)


def storm(kafka: KafkaCluster, topic: str, slots: list[int], codec: str, **also: Any) -> list[Sent]:
    """Kill children of these slots; what was sent meanwhile."""
    make_topic(kafka, topic)
    settings: dict[str, Any] = SETTINGS | {"compression_type": codec, "retry_backoff_ms": 10, "linger_ms": 5} | also
    with Producer(kafka.bootstrap_servers, **settings) as producer:
        producer.send(topic, FIRST, partition=0, **parts_of(FIRST)).result(WAIT_S)
        run = Storm(producer, topic)
        for number in range(KILLS):
            run.kill_one(slots[number % len(slots)])
        failed = flush(producer)
        stats = producer.stats()
        assert failed == sum(is_too_large(value) for _, value, _ in run.sent)
        assert stats.records_accepted == stats.records_delivered + failed == len(run.sent) + 1
        assert stats.network["splits"] > 5 * KILLS
        check_all_free(producer)
    return run.sent


def test_killed_workers_lose_and_double_no_record_of_split_batches(kafka: KafkaCluster, topic: str, codec: str) -> None:
    sent = storm(kafka, topic, [FIRST_WORKER, FIRST_WORKER + 1], codec)
    logs = logs_of(kafka, topic)
    check_offsets(logs, sent)
    logs[0].remove(FIRST)
    for partition, log in logs.items():
        assert log == expected_of(sent, partition)


def test_a_killed_network_process_loses_and_doubles_no_record_of_split_batches(
    kafka: KafkaCluster, topic: str, codec: str
) -> None:
    sent = storm(kafka, topic, [NETWORK], codec)
    logs = logs_of(kafka, topic)
    check_offsets(logs, sent)
    logs[0].remove(FIRST)
    for partition, log in logs.items():
        assert log == expected_of(sent, partition)


def test_without_idempotence_a_killed_network_process_repeats_only_what_was_on_the_wire(
    kafka: KafkaCluster, topic: str, codec: str
) -> None:
    sent = storm(kafka, topic, [NETWORK], codec, enable_idempotence=False)
    logs = logs_of(kafka, topic)
    check_offsets(logs, sent)
    logs[0].remove(FIRST)
    for partition, log in logs.items():
        expected = expected_of(sent, partition)
        assert list(dict.fromkeys(log)) == expected
        place = {value: number for number, value in enumerate(expected)}
        numbers = [place[value] for value in log]
        repeated = sum(after <= before for before, after in itertools.pairwise(numbers))
        assert repeated <= KILLS
