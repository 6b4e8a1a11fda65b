"""Building Produce requests and applying their answers, with arenas but without sockets."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from uuid import UUID

import pytest

from slabpress.network.backoff import Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.connection import Connection, InFlight
from slabpress.network.messages import METADATA, PRODUCE
from slabpress.network.metadata import Cluster
from slabpress.network.produce import ProduceContext, Producing
from slabpress.network.queues import Queues
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import (
    BrokerAddress,
    Leaders,
    MetadataAnswer,
    ProduceAnswer,
    ProduceResult,
    TopicMetadata,
    WireError,
)
from slabpress.shm.states import DONE, IN_FLIGHT, READY
from tests.network.rig import DELIVERY, SETTINGS, Rig

NODE = 1
ID, FORMER_ID = UUID(int=1), UUID(int=2)
SECOND = 1_000_000_000


class Bench:
    """Two producers' arenas that share one process's queues."""

    def __init__(self, rigs: list[Rig], acks: tuple[int, int]) -> None:
        self.rigs = rigs
        self.arenas = {
            number: ArenaBatches(number, rig.arena, {**DELIVERY, "acks": acks[number], "delivery_timeout_ms": 60_000})
            for number, rig in enumerate(rigs)
        }
        self.queues = Queues()
        self.cluster = Cluster()
        self.cluster.update(
            MetadataAnswer(
                0,
                0,
                [BrokerAddress(NODE, "a", 1)],
                [TopicMetadata("t", None, 0, Leaders(array("i", [NODE] * 4), array("i", [5] * 4)))],
            )
        )
        settings = NetworkSettings.of({**SETTINGS, "bootstrap_servers": []})
        backoff = Backoff(10, 100, lambda: 0.5)
        self.producing = Producing(settings, self.arenas, self.queues, self.cluster, backoff, lambda _: "because")
        self.connection = Connection("me", SECOND, plain=True)
        self.connection.connected(0)
        asked = self.sent()
        ranges = struct.pack(">hihhhhhh", 0, 2, PRODUCE, 0, 3, METADATA, 0, 5)
        list(self.receive(asked[8:12] + ranges))

    def sent(self) -> bytes:
        data = b"".join(self.connection.buffers(1000))
        self.connection.sent(len(data), 0)
        return data

    def receive(self, frame: bytes) -> list[tuple[InFlight, bytes]]:
        data = memoryview(struct.pack(">i", len(frame)) + frame)
        return [(answer.request, answer.frame) for answer in self.connection.received(data, 0)]

    def put(self, rig: int, partition: int) -> int:
        """A READY batch in an arena's queue."""
        index = self.rigs[rig].send("t", partition, b"x")
        for batch in self.arenas[rig].follow():
            batch.queue.leader = NODE
            self.queues.append(batch, 0)
        return index

    def send(self) -> ProduceContext | None:
        if not self.producing.send(NODE, self.connection, 0):
            return None
        context = self.connection._outgoing[-1].context
        assert isinstance(context, ProduceContext)
        return context

    def answer(self, *results: tuple[int, int]) -> None:
        """Answer the oldest request: (partition, error) each."""
        self.sent()
        request = self.connection._in_flight[0]
        body = struct.pack(">ih1si", 1, 1, b"t", len(results))
        body += b"".join(struct.pack(">ihqq", partition, error, 7, -1) for partition, error in results)
        frame = struct.pack(">i", request.correlation_id) + body + struct.pack(">i", 0)
        [(request, frame)] = self.receive(frame)
        assert isinstance(request.context, ProduceContext)
        self.producing.answered(request, request.context, frame, 0)


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    with Rig("127.0.0.1:9", start=False) as first, Rig("127.0.0.1:9", start=False) as second:
        yield [first, second]


def test_two_arenas_share_a_request_but_not_a_topic_partition(rigs: list[Rig]) -> None:
    """Kafka takes one batch of a topic-partition per request."""
    bench = Bench(rigs, (1, 1))
    for rig, partition in ((0, 0), (1, 0), (1, 1)):
        bench.put(rig, partition)
    first, second = bench.send(), bench.send()
    assert first is not None
    assert second is not None
    assert sorted(first.batches) == [("t", 0), ("t", 1)]
    assert sorted(second.batches) == [("t", 0)]
    assert bench.send() is None


def test_producers_with_other_acks_get_requests_of_their_own(rigs: list[Rig]) -> None:
    bench = Bench(rigs, (1, -1))
    bench.put(0, 0)
    bench.put(1, 1)
    acks = []
    while bench.send() is not None:
        data = bench.sent()
        acks.append(struct.unpack(">h", data[4 + 8 + 4 + 2 :][:2])[0])
    assert acks == [1, -1]


def test_each_partition_has_its_own_fate(rigs: list[Rig]) -> None:
    bench = Bench(rigs, (1, 1))
    indices = [bench.put(0, partition) for partition in range(3)]
    assert bench.send() is not None
    states = rigs[0].arena.batch_states
    assert [states.load(index) for index in indices] == [IN_FLIGHT] * 3
    bench.answer((2, 10), (0, 0), (1, 6))
    assert [states.load(index) for index in indices] == [DONE, READY, DONE]
    assert bench.producing.finished == 2
    assert bench.queues.next_ns == 10_000_000


@pytest.mark.parametrize(
    "results",
    [[(0, 0)], [(0, 0), (0, 0)], [(0, 0), (3, 0)], [(0, 0), (1, 0), (1, 0)], []],
    ids=["one missing", "one twice", "another", "one too many", "none"],
)
def test_an_answer_that_does_not_fit_changes_nothing(rigs: list[Rig], results: list[tuple[int, int]]) -> None:
    bench = Bench(rigs, (1, 1))
    indices = [bench.put(0, partition) for partition in range(2)]
    assert bench.send() is not None
    with pytest.raises(WireError):
        bench.answer(*results)
    assert [rigs[0].arena.batch_states.load(index) for index in indices] == [IN_FLIGHT] * 2
    assert bench.producing.finished == 0


def test_backoff_grows_with_each_try_of_a_batch(rigs: list[Rig]) -> None:
    bench = Bench(rigs, (1, 1))
    bench.put(0, 0)
    delays = []
    now = 0
    for _ in range(6):
        assert bench.send() is not None
        bench.answer((0, 19))
        due = bench.queues.next_ns
        delays.append(due // 1_000_000)
        now = due
        bench.queues.tick(now)
        for queue in bench.arenas[0].queues:
            if queue is not None:
                queue.retry_at_ns = 0
    assert delays == [10, 20, 40, 80, 100, 100]
    assert now > 0


@pytest.mark.inside
@pytest.mark.parametrize(("said_of", "leader"), [(ID, 2), (FORMER_ID, NODE)])
def test_a_hint_for_a_topic_that_is_no_more_is_not_taken(
    rigs: list[Rig], monkeypatch: pytest.MonkeyPatch, said_of: UUID, leader: int
) -> None:
    """Its leader epoch would stay above those of the topic that has its name now."""
    bench = Bench(rigs, (1, 1))
    bench.cluster.topics["t"].topic_id = ID
    bench.put(0, 0)
    context = bench.send()
    assert context is not None
    result = ProduceResult(said_of, 0, 6, -1, -1, [], "", 2, 9)
    said = ProduceAnswer(0, [result], [BrokerAddress(2, "b", 1)])
    monkeypatch.setattr("slabpress.network.produce.decode_produce", lambda _version, _frame: said)
    request = bench.connection._in_flight[0]
    applied = bench.producing.answered(request, ProduceContext(context.batches, {said_of.int: "t"}), b"", 0)
    assert bench.cluster.leader("t", 0) == leader
    assert applied.leaders_changed == (leader == 2)
    assert applied.metadata_is_stale
