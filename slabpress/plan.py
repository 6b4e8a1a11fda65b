"""The memory plan: every byte, computed from the settings before anything starts.

    plan = arena + workers x (process + codec workspace + split workspace) + network process + coordinator + kernel

The arena's part is exact: it is allocated at once and never changes. The processes' parts are what their
interpreters and imports take (PSS, measured by ``python -m bench.footprint``), plus what they may allocate: so many
bytes for each topic-partition, each batch, each output buffer, none for each record. Producers that share a
``Pipeline`` share the lines of its processes; the others add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from slabpress.codec_memory import split_workspace_bytes, workspace_bytes
from slabpress.config import BATCH_BYTES_DEFAULT, SLABS_PER_ARENA, Config
from slabpress.cpus import usable_cpus
from slabpress.errors import ConfigError
from slabpress.shm.control import CONTROL_BYTES
from slabpress.shm.layout import WORKERS_MAX, Geometry, layout_of, make_direct, plan_geometry
from slabpress.units import format_bytes

# Footprints: PSS without the arena, rounded up, of each idle process on CPython 3.11 to 3.13, x86-64 Linux.
WORKER_PROCESS_BYTES: Final = 11 << 20
NETWORK_PROCESS_BYTES: Final = 18 << 20
COORDINATOR_BYTES: Final = 10 << 20
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

_SLAB_BYTES_LEAST: Final = 4 * 1024
_SLAB_BYTES_MOST: Final = 64 * 1024
_BYTES_PER_TOPIC_PARTITION: Final = 16 * 1024
_TOPIC_PARTITIONS_LEAST: Final = 128
_TOPIC_PARTITIONS_MOST: Final = 16_384
_TOPICS_LEAST: Final = 32
_PARTITIONS_PER_TOPIC: Final = 2


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


class MemoryPlan(NamedTuple):
    """What a producer will take, and the sizes that follow from its settings.

    Attributes:
        geometry: the arena's shape.
        workers: worker processes.
        batch_bytes: the largest batch of several records, uncompressed.
        largest_record_bytes: the largest encoded record that is ever accepted.
        lines: every byte, by purpose; without the processes where they are a ``Pipeline``'s.
    """

    geometry: Geometry
    workers: int
    batch_bytes: int
    largest_record_bytes: int
    lines: tuple[PlanLine, ...]

    @property
    def arena_bytes(self) -> int:
        """Bytes of the one shared mapping: ``buffer_memory``."""
        return self.geometry.arena_bytes

    @property
    def largest_batch_bytes(self) -> int:
        """The largest batch, uncompressed: a full one, or a single record that is larger."""
        return max(self.batch_bytes, self.largest_record_bytes)

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(line.total_bytes for line in self.lines)

    def as_dict(self) -> dict[str, object]:
        """The plan as plain data, for JSON."""
        return {
            "total_bytes": self.total_bytes,
            "arena_bytes": self.arena_bytes,
            "workers": self.workers,
            "batch_bytes": self.batch_bytes,
            "largest_record_bytes": self.largest_record_bytes,
            "geometry": self.geometry._asdict(),
            "lines": [line._asdict() | {"total_bytes": line.total_bytes} for line in self.lines],
        }

    def table(self) -> str:
        """The plan as a table for people."""
        return _table(self.lines)


class PipelinePlan(NamedTuple):
    """What one set of processes takes together with the producers that share it now.

    Attributes:
        workers: worker processes.
        lines: every byte, by purpose; equal lines of several producers are one.
    """

    workers: int
    lines: tuple[PlanLine, ...]

    @classmethod
    def of(cls, workers: int, own: tuple[PlanLine, ...], producers: Iterable[MemoryPlan]) -> PipelinePlan:
        """Add up the processes' own lines and what each producer adds."""
        units: dict[PlanLine, int] = {}
        splitting: list[PlanLine] = []
        for line in (line for plan in producers for line in plan.lines):
            key = line._replace(units=0)
            if line.part in (ARENA, NETWORK, COORDINATOR, KERNEL):
                units[key] = units.get(key, 0) + line.units
            elif line.name == CODEC_LINE:
                units[key] = workers  # producers with the same codec share its workspace: one batch at a time
            elif line.name == SPLIT_LINE:
                splitting.append(line)
        largest = sorted(splitting, key=lambda line: line.bytes_each)[-1:]
        return cls(workers, (*(line._replace(units=count) for line, count in units.items()), *largest, *own))

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(line.total_bytes for line in self.lines)

    def by_part(self) -> dict[str, int]:
        """Bytes of each part, the workers one by one."""
        sums = bytes_by_part(self.lines)
        each = sums.pop(WORKER, 0) // max(1, self.workers)
        return sums | {f"{WORKER} {number}": each for number in range(self.workers)}

    def as_dict(self) -> dict[str, object]:
        """The plan as plain data, for JSON."""
        return {
            "total_bytes": self.total_bytes,
            "workers": self.workers,
            "lines": [line._asdict() | {"total_bytes": line.total_bytes} for line in self.lines],
        }

    def table(self) -> str:
        """The plan as a table for people."""
        return _table(self.lines)


def bytes_by_part(lines: Iterable[PlanLine]) -> dict[str, int]:
    """Bytes of each part: the arena, all workers together, and so on."""
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.part] = sums.get(line.part, 0) + line.total_bytes
    return sums


def _table(lines: tuple[PlanLine, ...]) -> str:
    rows = [
        (line.name, str(line.units), format_bytes(line.bytes_each), format_bytes(line.total_bytes), line.note)
        for line in lines
    ]
    rows.append(("total", "", "", format_bytes(sum(line.total_bytes for line in lines)), ""))
    head = ("what", "units", "each", "bytes", "")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
    texts = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3)), row[4]]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def workers_of(config: Config) -> int:
    """How many workers these settings mean for a set of processes, whatever producers join it."""
    return config.workers or min(WORKERS_MAX, usable_cpus())


def workers_of_one(config: Config) -> int:
    """How many workers they mean for a producer with processes of its own.

    Without compression one is enough: it makes the pieces of batches that the broker finds too large.
    """
    return 1 if not config.workers and config.compression_type == "none" else workers_of(config)


def plan_memory(config: Config) -> MemoryPlan:
    """Compute the plan of a producer with these settings and processes of its own. Starts and allocates nothing.

    Raises:
        ConfigError: buffer_memory is too small to hold even two slabs and two output buffers.
    """
    plan = plan_producer(config, workers_of_one(config))
    return plan._replace(lines=(*plan.lines, *process_lines(config, plan.workers)))


def plan_producer(config: Config, workers: int) -> MemoryPlan:
    """Compute what a producer with these settings adds to a set of processes with so many workers.

    Raises:
        ConfigError: buffer_memory is too small to hold even two slabs and two output buffers.
    """
    geometry = _geometry(config)
    if config.compression_type == "none":
        return _plan_direct(config, workers, geometry)
    slab_area = geometry.slab_bytes * geometry.slab_count
    # Each worker has a batch in its hands, and there are as many again that wait for one, and twice as many open.
    largest = min(BATCH_BYTES_DEFAULT, config.max_request_size, slab_area // max(8, 4 * workers))
    whole_slabs = max(1, largest // geometry.slab_bytes)
    batch_bytes = config.batch_size or whole_slabs * geometry.slab_bytes
    # A piece of a batch that has to be split finds its room apart from the batches that wait behind it.
    half_of_outputs = geometry.output_count // 2 * geometry.output_bytes
    batch_bytes = min(batch_bytes, slab_area, half_of_outputs)
    geometry = geometry._replace(split_outputs=-(-batch_bytes // geometry.output_bytes))
    room = (geometry.output_count - geometry.split_outputs) * geometry.output_bytes
    largest_record = min(config.max_request_size, slab_area, room)
    plan = MemoryPlan(geometry, workers, batch_bytes, largest_record, ())
    return plan._replace(lines=_lines(config, plan))


def _plan_direct(config: Config, workers: int, geometry: Geometry) -> MemoryPlan:
    """Without compression batches are sent from their slabs; output buffers are there for the pieces of one batch."""
    blocks = geometry.slab_count + geometry.output_count
    largest = min(BATCH_BYTES_DEFAULT, config.max_request_size, blocks * geometry.slab_bytes // 16)
    wanted = config.batch_size or max(geometry.slab_bytes, largest)
    outputs = max(1, min(-(-wanted // geometry.slab_bytes), blocks // 4))
    geometry = make_direct(geometry, outputs)
    slab_area = geometry.slab_bytes * geometry.slab_count
    batch_bytes = min(wanted, outputs * geometry.output_bytes)
    plan = MemoryPlan(geometry, workers, batch_bytes, min(config.max_request_size, slab_area), ())
    return plan._replace(lines=_lines(config, plan))


def _geometry(config: Config) -> Geometry:
    slab_bytes = config.slab_size or automatic_slab_bytes(config.buffer_memory)
    partitions = config.max_topic_partitions or min(
        _TOPIC_PARTITIONS_MOST, max(_TOPIC_PARTITIONS_LEAST, config.buffer_memory // _BYTES_PER_TOPIC_PARTITION)
    )
    topics = max(min(_TOPICS_LEAST, partitions), partitions // _PARTITIONS_PER_TOPIC)
    try:
        return plan_geometry(config.buffer_memory, slab_bytes, topics, partitions)
    except ValueError as error:
        raise ConfigError(
            f"buffer_memory is {config.buffer_memory} bytes, too small: {error}; raise it or lower slab_size"
        ) from error


def automatic_slab_bytes(buffer_memory: int) -> int:
    """A power of two, about a two-thousandth of the arena, between 4 KiB and 64 KiB."""
    share = max(1, buffer_memory // SLABS_PER_ARENA)
    return min(_SLAB_BYTES_MOST, max(_SLAB_BYTES_LEAST, 1 << (share.bit_length() - 1)))


def _lines(config: Config, plan: MemoryPlan) -> tuple[PlanLine, ...]:
    """What a producer adds to the processes that serve it."""
    geometry = plan.geometry
    layout = layout_of(geometry)
    unused = geometry.arena_bytes - layout.end
    codec_bytes = workspace_bytes(config.compression_type, config.compression_level, plan.largest_batch_bytes)
    split_bytes = split_workspace_bytes(plan.batch_bytes)
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
        PlanLine(
            "kernel: page tables", plan.workers + 2, geometry.arena_bytes // _PAGE_TABLE_SHARE, "of the arena", KERNEL
        ),
        PlanLine(CODEC_LINE, plan.workers, codec_bytes, f"{config.compression_type}{level}, one a worker", WORKER),
        PlanLine(SPLIT_LINE, plan.workers, split_bytes, "for batches that the broker finds too large", WORKER),
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
