"""The network process of an idempotent producer without sockets or time: one life of it, and its connections.

Real is all that decides: ``ArenaBatches``, ``Sequences``, ``Queues``, ``Producing`` and the connections' framing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from slabpress.network.backoff import Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.connection import Connection, InFlight
from slabpress.network.messages import METADATA, PRODUCE
from slabpress.network.metadata import Cluster
from slabpress.network.partition import Batch
from slabpress.network.produce import ProduceContext, Producing
from slabpress.network.queues import Queues
from slabpress.network.settings import NetworkSettings
from tests.shm.faults import Life, MortalDescriptors, mortal
from tests.support.limited_broker import TOPIC
from tests.support.model_cluster import Came, Said
from tests.support.split_bench import SplitBench

DELIVERY_TIMEOUT_MS: Final = 2_000
# More than brokers remember: the limit for one topic-partition is not the connection's.
REQUESTS_MOST: Final = 8
EVER: Final = 1 << 60
_SETTINGS: Final[dict[str, Any]] = {
    "acks": -1,
    "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
    "max_request_size": 1 << 20,
    "enable_idempotence": True,
}
_NETWORK: Final = {
    **dict.fromkeys(NetworkSettings._fields, 0),
    "bootstrap_servers": [],
    "client_id": "model",
    "request_timeout_ms": 1_000,
}
_PRODUCE_VERSION: Final = 3


class Wire:
    """A connection to a broker: the client's end, and what is on its way in both directions."""

    def __init__(self, now: int) -> None:
        self.requests: deque[Came] = deque()
        self.answers: deque[bytes] = deque()
        self.connection = Connection("model", EVER, plain=True)
        self.connection.connected(now)
        asked = self.flush(now)
        ranges = struct.pack(">hihhhhhh", 0, 2, PRODUCE, 0, _PRODUCE_VERSION, METADATA, 0, 5)
        assert list(self.receive(asked[8:12] + ranges, now)) == []

    def flush(self, now: int) -> bytes:
        """What the kernel takes now."""
        data = b"".join(self.connection.buffers(1000))
        self.connection.sent(len(data), now)
        return data

    def receive(self, frame: bytes, now: int) -> Iterator[tuple[InFlight, bytes]]:
        """A frame has come; the request that it answers."""
        for answer in self.connection.received(memoryview(struct.pack(">i", len(frame)) + frame), now):
            yield answer.request, answer.frame

    def answer(self, correlation_id: int, said: list[Said]) -> None:
        """The broker answers the request that it had first."""
        body = struct.pack(">ih1si", 1, len(TOPIC), TOPIC.encode(), len(said))
        body += b"".join(struct.pack(">ihqq", each.partition, each.error, each.offset, -1) for each in said)
        self.answers.append(struct.pack(">i", correlation_id) + body + struct.pack(">i", 0))


class NetworkLife:
    """One life of the network process.

    Args:
        bench: the arena that it serves.
        changes: after so many stores it dies.
    """

    def __init__(self, bench: SplitBench, changes: int) -> None:
        self.life = Life(changes)
        arena = mortal(bench.arena, self.life)
        self.batches = ArenaBatches(0, arena, _SETTINGS)
        self.batches._descriptors = MortalDescriptors(self.life, arena, bench.arena)
        self.queues = Queues()
        self.wires: dict[int, Wire] = {}
        self._batches: list[Batch] = []
        self.producing = Producing(
            NetworkSettings.of(_NETWORK),
            {0: self.batches},
            self.queues,
            Cluster(),
            Backoff(10, 100, lambda: 0.5),
            lambda _: "because",
        )

    def look(self, leaders: Sequence[int], producer_id: int, now: int) -> None:
        """What the loop does before it sends: hear of new batches, of READY ones, let the time pass."""
        self.queues.became_ready(self.batches, self.batches.newly_ready(), now)
        for batch in self.batches.follow():
            self._batches.append(batch)
            if not batch.queue.waiting and batch.queue.leader is None:
                self.queues.set_leader(batch.queue, leaders[batch.queue.number], now)
            self.queues.append(batch, now)
        self.queues.tick(now)
        self.producing.report_expired()
        if self.batches.sequences.producer_id is None:
            self.batches.sequences.set_producer_id(producer_id)

    def send(self, node: int, now: int) -> bool:
        """Send one request to a broker if there is anything to be sent; whether there was."""
        if node not in self.queues.sendable:
            return False
        wire = self.wires.get(node)
        if wire is None:
            wire = self.wires[node] = Wire(now)
        if wire.connection.in_flight >= REQUESTS_MOST or not self.producing.send(node, wire.connection, now):
            return False
        [request] = wire.connection.outgoing()
        context = request.context
        assert isinstance(context, ProduceContext)
        parts = {number: b"".join(batch.parts) for (_, number), batch in context.batches.items()}
        wire.requests.append(Came(request.correlation_id, parts))
        wire.flush(now)
        return True

    def hear(self, node: int, now: int) -> None:
        """Take the broker's next answer."""
        wire = self.wires[node]
        for request, frame in wire.receive(wire.answers.popleft(), now):
            assert isinstance(request.context, ProduceContext)
            self.producing.answered(request, request.context, frame, now)

    def lose(self, node: int, now: int) -> None:
        """A connection is closed."""
        for request in self.wires.pop(node).connection.close():
            assert isinstance(request.context, ProduceContext)
            self.producing.lost(request.context, "closed", now)

    def end(self) -> None:
        """The process is gone, and with it its views of the arena."""
        for wire in self.wires.values():
            wire.connection.close()
        self.wires.clear()
        for batch in self._batches:
            batch.parts = []
