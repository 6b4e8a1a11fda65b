"""The memory plan: every byte, computed from the settings before anything starts.

    plan = arena + workers x (process + codec workspace + split workspace) + network process + coordinator + kernel

Here the sizes are decided: the arena's shape, the largest batch, the workers. What each part takes at these sizes is in
footprints.py. The arena's part is exact: it is allocated at once and never changes. Producers that share a ``Pipeline``
share the lines of its processes; the others add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from slabpress.config import BATCH_BYTES_DEFAULT, SLABS_PER_ARENA, Config
from slabpress.cpus import usable_cpus
from slabpress.errors import ConfigError
from slabpress.footprints import (
    ARENA,
    CODEC_LINE,
    COORDINATOR,
    KERNEL,
    NETWORK,
    SPLIT_LINE,
    WORKER,
    PlanLine,
    bytes_by_part,
    process_lines,
    producer_lines,
)
from slabpress.shm.layout import WORKERS_MAX, Geometry, make_direct, plan_geometry
from slabpress.units import format_bytes

_SLAB_BYTES_LEAST: Final = 4 * 1024
_SLAB_BYTES_MOST: Final = 64 * 1024
_SMALLER_SLABS: Final = 4
_BYTES_PER_TOPIC_PARTITION: Final = 16 * 1024
_TOPIC_PARTITIONS_LEAST: Final = 128
_TOPIC_PARTITIONS_MOST: Final = 16_384
_TOPICS_LEAST: Final = 32
_PARTITIONS_PER_TOPIC: Final = 2


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
    slab_bytes = config.slab_size or automatic_slab_bytes(config.buffer_memory, config.batch_size)
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


def automatic_slab_bytes(buffer_memory: int, batch_size: int = 0) -> int:
    """A power of two, about a two-thousandth of the arena, between 4 KiB and 64 KiB.

    Less where batches are set to be smaller than that: what they leave of their slabs is room that nobody has. But not
    less than a quarter, for each slab that there is more has its lines in the plan.
    """
    share = max(1, buffer_memory // SLABS_PER_ARENA)
    by_arena = 1 << (share.bit_length() - 1)
    by_batch = max(by_arena // _SMALLER_SLABS, 1 << (batch_size - 1).bit_length()) if batch_size else by_arena
    return min(_SLAB_BYTES_MOST, max(_SLAB_BYTES_LEAST, min(by_arena, by_batch)))


def _lines(config: Config, plan: MemoryPlan) -> tuple[PlanLine, ...]:
    return producer_lines(config, plan.geometry, plan.workers, plan.batch_bytes, plan.largest_batch_bytes)
