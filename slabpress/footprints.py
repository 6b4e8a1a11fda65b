"""What each part takes, line by line: what was measured of the processes, at the sizes that a plan has decided.

The processes' parts are what their interpreters and imports take (PSS, measured by ``python -m bench.footprint``), plus
what they may allocate: so many bytes for each topic-partition, each batch, each output buffer, none for each record.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from slabpress.codec_memory import split_workspace_bytes, workspace_bytes
from slabpress.config import Config
from slabpress.shm.control import CONTROL_BYTES
from slabpress.shm.layout import Geometry, layout_of

# Footprints: PSS without the arena, rounded up, of each idle process on CPython 3.11 to 3.13, x86-64 Linux.
WORKER_PROCESS_BYTES: Final = 11 << 20
NETWORK_PROCESS_BYTES: Final = 18 << 20
# Idle it is 8 MiB; at work, beside what is counted below, up to 10.2 were seen (12 topics of 10,000 partitions).
COORDINATOR_BYTES: Final = 11 << 20
# Python objects, measured with tracemalloc and rounded up. Of each topic-partition the network process keeps its
# queue and its timers; of each batch under way who it is and where, and a view of each of its output buffers.
NETWORK_BYTES_PER_PARTITION: Final = 768
NETWORK_BYTES_PER_BATCH: Final = 384
NETWORK_BYTES_PER_OUTPUT: Final = 1152
# The largest response that is read; those of Metadata are the large ones.
NETWORK_RESPONSE_BYTES: Final = 4 << 20
COORDINATOR_BYTES_PER_BATCH: Final = 640
COORDINATOR_BYTES_PER_PARTITION: Final = 160
# A partition of one replica in such a response, and what either process keeps of it.
_RESPONSE_PARTITIONS: Final = NETWORK_RESPONSE_BYTES // 26
_BYTES_PER_KNOWN_PARTITION: Final = 8
# One page table entry of 8 bytes for each page of 4 KiB; and what the kernel keeps of a process by itself.
_PAGE_TABLE_SHARE: Final = 512
_PROCESS_KERNEL_BYTES: Final = 256 << 10
# The kernel doubles what SO_SNDBUF and SO_RCVBUF ask for, to have room for its own bookkeeping (socket(7)).
_SOCKET_FACTOR: Final = 2
# It lets a socket go beyond that by what is being added: 274 KB were charged against 256.
_SOCKET_BEYOND_BYTES: Final = 32 << 10
_SYSTEM_SOCKET_BYTES: Final = {"tcp_wmem": 4 << 20, "tcp_rmem": 6 << 20}

# Whose bytes a line counts.
ARENA: Final = "arena"
CONTROL: Final = "control block"
WORKER: Final = "worker"
NETWORK: Final = "network process"
COORDINATOR: Final = "coordinator"
KERNEL: Final = "kernel"
CODEC_LINE: Final = "codec workspace"
SPLIT_LINE: Final = "split workspace"
COORDINATOR_LINE: Final = "coordinator process"


class PlanLine(NamedTuple):
    """One line of the plan: what, how many of it, bytes each, and whose they are (ARENA, WORKER, ...)."""

    name: str
    units: int
    bytes_each: int
    note: str
    part: str

    @property
    def total_bytes(self) -> int:
        """Bytes of the line in all."""
        return self.units * self.bytes_each


def bytes_by_part(lines: Iterable[PlanLine]) -> dict[str, int]:
    """Bytes of each part: the arena, all workers together, and so on."""
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.part] = sums.get(line.part, 0) + line.total_bytes
    return sums


def producer_lines(
    config: Config, geometry: Geometry, workers: int, batch_bytes: int, largest_batch_bytes: int
) -> tuple[PlanLine, ...]:
    """What a producer adds to the processes that serve it.

    Args:
        config: its settings.
        geometry: its arena's shape.
        workers: worker processes.
        batch_bytes: the largest batch of several records, uncompressed.
        largest_batch_bytes: the largest batch, one of a single record included.
    """
    layout = layout_of(geometry)
    unused = geometry.arena_bytes - layout.end
    codec_bytes = workspace_bytes(config.compression_type, config.compression_level, largest_batch_bytes)
    split_bytes = split_workspace_bytes(batch_bytes)
    blocks_sent, outputs_hold = geometry.output_count, "until acknowledged"
    if geometry.is_direct:
        blocks_sent, outputs_hold = blocks_sent + geometry.slab_count, "for batches that the broker finds too large"
    level = "" if config.compression_level is None else f":{config.compression_level}"
    return (
        PlanLine("arena: tables", 1, layout.slabs + unused, f"{geometry.batch_count} descriptors", ARENA),
        PlanLine("arena: slabs", geometry.slab_count, geometry.slab_bytes, "records, as they are sent", ARENA),
        PlanLine("arena: output buffers", geometry.output_count, geometry.output_bytes, outputs_hold, ARENA),
        PlanLine("network: partitions", geometry.partition_count, NETWORK_BYTES_PER_PARTITION, "queues", NETWORK),
        PlanLine("network: batches", geometry.batch_count, NETWORK_BYTES_PER_BATCH, "under way", NETWORK),
        PlanLine("network: views", blocks_sent, NETWORK_BYTES_PER_OUTPUT, "of what is sent", NETWORK),
        PlanLine("coordinator: batches", geometry.batch_count, COORDINATOR_BYTES_PER_BATCH, "under way", COORDINATOR),
        PlanLine(
            "coordinator: partitions", geometry.partition_count, COORDINATOR_BYTES_PER_PARTITION, "in use", COORDINATOR
        ),
        PlanLine("kernel: page tables", workers + 2, geometry.arena_bytes // _PAGE_TABLE_SHARE, "of the arena", KERNEL),
        PlanLine(CODEC_LINE, workers, codec_bytes, f"{config.compression_type}{level}, one a worker", WORKER),
        PlanLine(SPLIT_LINE, workers, split_bytes, "for batches that the broker finds too large", WORKER),
    )


def process_lines(config: Config, workers: int) -> tuple[PlanLine, ...]:
    """What a set of processes takes, whatever the producers."""
    sockets = _socket_bytes(config.send_buffer_bytes, "tcp_wmem") + _socket_bytes(
        config.receive_buffer_bytes, "tcp_rmem"
    )
    return (
        PlanLine("control block", 1, CONTROL_BYTES, "process states and doorbells", CONTROL),
        PlanLine("worker process", workers, WORKER_PROCESS_BYTES, "interpreter and codec library", WORKER),
        PlanLine("network process", 1, NETWORK_PROCESS_BYTES, "interpreter, protocol, connections", NETWORK),
        PlanLine("network: response", 1, NETWORK_RESPONSE_BYTES, "the largest that is read", NETWORK),
        PlanLine("network: leaders", _RESPONSE_PARTITIONS, _BYTES_PER_KNOWN_PARTITION, "of all that it names", NETWORK),
        PlanLine(COORDINATOR_LINE, 1, COORDINATOR_BYTES, "what the import adds to your process", COORDINATOR),
        PlanLine("coordinator: topics", _RESPONSE_PARTITIONS, _BYTES_PER_KNOWN_PARTITION, "the same", COORDINATOR),
        PlanLine("kernel: processes", workers + 1, _PROCESS_KERNEL_BYTES, "their own page tables", KERNEL),
        PlanLine("kernel: sockets", config.planned_brokers, sockets, "buffers of a broker's connection", KERNEL),
    )


def _socket_bytes(wanted: int, system: str) -> int:
    """The most that the kernel keeps for one direction of a connection; ``wanted`` -1 is up to the system."""
    if wanted >= 0:
        return _SOCKET_FACTOR * wanted + _SOCKET_BEYOND_BYTES
    try:
        return int(Path("/proc/sys/net/ipv4", system).read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return _SYSTEM_SOCKET_BYTES[system]
