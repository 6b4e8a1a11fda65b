"""Arenas whose producers were closed: unmapped once no socket takes bytes from them any more (law 7)."""

from __future__ import annotations

from collections.abc import Iterable

from slabpress.network.batches import ArenaBatches
from slabpress.network.brokers import Brokers
from slabpress.network.connection import InFlight
from slabpress.network.partition import Batch
from slabpress.network.produce import ProduceContext
from slabpress.shm.handover import Child


class Departures:
    """The arenas that are to be unmapped.

    Args:
        child: unmaps them, and says so.
        brokers: whose connections may still send from them.
    """

    def __init__(self, child: Child, brokers: Brokers) -> None:
        self._child = child
        self._brokers = brokers
        self._leaving: list[ArenaBatches] = []

    def __bool__(self) -> bool:
        return bool(self._leaving)

    def begin(self, gone: ArenaBatches) -> None:
        """Send nothing of an arena any more."""
        gone.retire()
        self._leaving.append(gone)

    def go_on(self) -> None:
        """Unmap those that can be."""
        connections = [broker.connection for broker in self._brokers if broker.connection is not None]
        for gone in list(self._leaving):
            if any(_batches_of(gone, connection.outgoing()) for connection in connections):
                continue
            self._leaving.remove(gone)
            for queue in gone.queues:
                for batch in queue.on_wire if queue is not None else ():
                    batch.parts = []  # views of the arena; the response, if one comes, will find nobody interested
            gone.queues.clear()
            self._child.let_go(gone.arena)


def _batches_of(arena: ArenaBatches, requests: Iterable[InFlight]) -> list[Batch]:
    """The arena's batches that these requests carry."""
    contexts = [request.context for request in requests if isinstance(request.context, ProduceContext)]
    batches = [batch for context in contexts for batch in context.batches.values()]
    return [batch for batch in batches if batch.queue.source is arena]
