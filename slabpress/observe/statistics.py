"""A producer's figures at one moment, read from the arena's tables and counters.

Every counter has one writer and is read without a lock, so a snapshot of a busy producer is a moment smeared over
some microseconds; the figures of each table are of one scan and always add up to the table (law 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from slabpress.plan import MemoryPlan
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.states import BATCH_STATES, OUTPUT_STATES, SLAB_STATES


class MemoryFigure(NamedTuple):
    """Planned beside measured bytes of one part.

    Attributes:
        name: "arena" (all of them), "control block", "network process", "worker 0", ..., "coordinator", "kernel".
        planned_bytes: its lines of the plan.
        measured_bytes: what it takes now, PSS without the arenas where the system tells (else USS); None for the
            coordinator, whose part of your own process cannot be told from the rest of it, and for the kernel's
            buffers.
    """

    name: str
    planned_bytes: int
    measured_bytes: int | None


class Statistics(NamedTuple):
    """What a producer has done and holds.

    Attributes:
        records_accepted: records that send(), send_many() and their like took.
        records_delivered: records that the cluster acknowledged.
        records_failed: records that were accepted and not delivered.
        records_pending: records under way; accepted = delivered + failed + pending.
        record_bytes: bytes of the records in sealed batches, encoded and uncompressed.
        payload_bytes_delivered: bytes of delivered batches as they were sent, without headers.
        request_bytes: bytes of all Produce requests, retries included.
        batches: how many descriptors are in each state.
        slabs: how many slabs are in each state.
        output_buffers: how many output buffers are in each state.
        coordinator: the coordinator's counters, by the names in shm/layout.py.
        network: the network process's counters.
        workers: each worker's counters.
        memory: planned beside measured bytes, of the arenas and of each process; with a ``Pipeline``, of all the
            producers that share it.
    """

    records_accepted: int
    records_delivered: int
    records_failed: int
    records_pending: int
    record_bytes: int
    payload_bytes_delivered: int
    request_bytes: int
    batches: Mapping[str, int]
    slabs: Mapping[str, int]
    output_buffers: Mapping[str, int]
    coordinator: Mapping[str, int]
    network: Mapping[str, int]
    workers: tuple[Mapping[str, int], ...]
    memory: tuple[MemoryFigure, ...]

    @property
    def memory_planned_bytes(self) -> int:
        """The plan's total."""
        return sum(figure.planned_bytes for figure in self.memory)

    @property
    def memory_measured_bytes(self) -> int:
        """What arenas, control block and children take now."""
        return sum(figure.measured_bytes or 0 for figure in self.memory)


class RecordCounts(NamedTuple):
    """Records by what became of them, counted where handles are given out and resolved."""

    accepted: int
    delivered: int
    failed: int


def read_statistics(
    arena: Arena, plan: MemoryPlan, records: RecordCounts, memory: tuple[MemoryFigure, ...]
) -> Statistics:
    """Read an arena's figures.

    Args:
        arena: the arena.
        plan: its plan.
        records: the records' counts.
        memory: planned beside measured.
    """
    coordinator = _counters(arena, at.COORDINATOR_COUNTERS_AT, at.COORDINATOR_COUNTERS)
    network = _counters(arena, at.NETWORK_COUNTERS_AT, at.NETWORK_COUNTERS)
    workers = tuple(
        _counters(arena, at.WORKER_COUNTERS_AT + worker * at.LINE_BYTES, at.WORKER_COUNTERS)
        for worker in range(plan.workers)
    )
    return Statistics(
        records_accepted=records.accepted,
        records_delivered=records.delivered,
        records_failed=records.failed,
        records_pending=records.accepted - records.delivered - records.failed,
        record_bytes=coordinator["record_bytes"],
        payload_bytes_delivered=network["payload_bytes_delivered"],
        request_bytes=network["request_bytes"],
        batches=_tally(arena.batch_states.tally(len(BATCH_STATES)), BATCH_STATES),
        slabs=_tally(arena.slab_states.tally(len(SLAB_STATES)), SLAB_STATES),
        output_buffers=_tally(arena.output_states.tally(len(OUTPUT_STATES)), OUTPUT_STATES),
        coordinator=coordinator,
        network=network,
        workers=workers,
        memory=memory,
    )


def _counters(arena: Arena, offset: int, names: tuple[str, ...]) -> dict[str, int]:
    return {name: arena.memory.load_u64(offset + 8 * place) for place, name in enumerate(names)}


def _tally(counts: list[int], names: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(names, counts, strict=True))
