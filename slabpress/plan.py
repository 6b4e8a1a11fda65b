"""The memory plan: every byte, computed from the settings before anything starts.

    plan = arena + control block + workers x (codec workspace + worker process) + network process + coordinator

The arena's part is exact: it is allocated at once and never changes. The processes' parts are what their
interpreters and imports take (PSS, measured by ``python -m bench.footprint``), plus what they may allocate.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from slabpress.codec_memory import workspace_bytes
from slabpress.config import BATCH_BYTES_DEFAULT, SLABS_PER_ARENA, Config
from slabpress.cpus import usable_cpus
from slabpress.errors import ConfigError
from slabpress.shm.control import CONTROL_BYTES
from slabpress.shm.layout import WORKERS_MAX, Geometry, layout_of, plan_geometry
from slabpress.units import format_bytes

# Footprints: PSS without the arena, rounded up, of each idle process on CPython 3.11 to 3.13, x86-64 Linux.
WORKER_PROCESS_BYTES: Final = 10 << 20
NETWORK_PROCESS_BYTES: Final = 18 << 20
# What the network process keeps of each topic-partition: its queue, its leader, its share of a metadata answer.
NETWORK_BYTES_PER_PARTITION: Final = 1280
COORDINATOR_BYTES: Final = 10 << 20

_SLAB_BYTES_LEAST: Final = 4 * 1024
_SLAB_BYTES_MOST: Final = 64 * 1024
_BYTES_PER_TOPIC_PARTITION: Final = 16 * 1024
_TOPIC_PARTITIONS_LEAST: Final = 128
_TOPIC_PARTITIONS_MOST: Final = 16_384
_TOPICS_LEAST: Final = 32
_PARTITIONS_PER_TOPIC: Final = 2


class PlanLine(NamedTuple):
    """One line of the plan: what, how many of it, and bytes each."""

    name: str
    units: int
    bytes_each: int
    note: str

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
        lines: every byte, by purpose.
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
        rows = [
            (line.name, str(line.units), format_bytes(line.bytes_each), format_bytes(line.total_bytes), line.note)
            for line in self.lines
        ]
        rows.append(("total", "", "", format_bytes(self.total_bytes), ""))
        head = ("what", "units", "each", "bytes", "")
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
        texts = []
        for row in (head, *rows):
            cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3)), row[4]]
            texts.append("  ".join(cells).rstrip())
        return "\n".join(texts)


def plan_memory(config: Config) -> MemoryPlan:
    """Compute the plan of a producer with these settings. Starts and allocates nothing.

    Raises:
        ConfigError: buffer_memory is too small to hold even two slabs and two output buffers.
    """
    geometry = _geometry(config)
    workers = config.workers or min(WORKERS_MAX, usable_cpus())
    slab_area = geometry.slab_bytes * geometry.slab_count
    batch_bytes = config.batch_size or max(geometry.slab_bytes, min(BATCH_BYTES_DEFAULT, slab_area // 8))
    largest_record = min(config.max_request_size, slab_area)
    plan = MemoryPlan(geometry, workers, min(batch_bytes, slab_area), largest_record, ())
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
    geometry = plan.geometry
    layout = layout_of(geometry)
    unused = geometry.arena_bytes - layout.end
    codec_bytes = workspace_bytes(config.compression_type, config.compression_level, plan.largest_batch_bytes)
    level = "" if config.compression_level is None else f":{config.compression_level}"
    return (
        PlanLine("arena: tables", 1, layout.slabs + unused, f"{geometry.batch_count} descriptors"),
        PlanLine("arena: slabs", geometry.slab_count, geometry.slab_bytes, "records, as they are sent"),
        PlanLine("arena: output buffers", geometry.output_count, geometry.output_bytes, "until acknowledged"),
        PlanLine("control block", 1, CONTROL_BYTES, "process states and doorbells"),
        PlanLine("codec workspace", plan.workers, codec_bytes, f"{config.compression_type}{level}, one a worker"),
        PlanLine("worker process", plan.workers, WORKER_PROCESS_BYTES, "interpreter and codec library"),
        PlanLine("network process", 1, NETWORK_PROCESS_BYTES, "interpreter, protocol, connections"),
        PlanLine("network: partitions", geometry.partition_count, NETWORK_BYTES_PER_PARTITION, "queues and leaders"),
        PlanLine("coordinator", 1, COORDINATOR_BYTES, "what the import adds to your process"),
    )
