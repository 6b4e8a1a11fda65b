"""Before a set of processes starts: what its children are told, whether there is memory; and what refused calls get."""

from __future__ import annotations

from typing import Any, Final

from slabpress.config import PIPELINE_SETTINGS, Config
from slabpress.cpus import memory_available_bytes
from slabpress.errors import ForkedError, MemoryShortError, ProducerClosedError, SlabpressError
from slabpress.footprints import COORDINATOR_LINE, PlanLine
from slabpress.pipeline.child import Role
from slabpress.plan import MemoryPlan
from slabpress.shm.control import FIRST_WORKER, NETWORK
from slabpress.units import format_bytes

# What the children must know of each producer.
_ARENA_SETTINGS: Final = (
    "acks",
    "enable_idempotence",
    "delivery_timeout_ms",
    "max_request_size",
    "compression_type",
    "compression_level",
)


def roles_of(config: Config, workers: int) -> list[Role]:
    """The children of a set of processes with these settings."""
    cluster = {name: getattr(config, name) for name in PIPELINE_SETTINGS}
    own = {"orphan_drain": config.orphan_drain}
    network = Role("network process", "slabpress.network", NETWORK, cluster)
    return [
        network,
        *(Role(f"worker {worker}", "slabpress.workers", FIRST_WORKER + worker, own) for worker in range(workers)),
    ]


def arena_settings(config: Config, plan: MemoryPlan) -> dict[str, Any]:
    """What the children are told of a producer."""
    settings = {name: getattr(config, name) for name in _ARENA_SETTINGS}
    return settings | {"largest_batch_bytes": plan.largest_batch_bytes}


def closed_error() -> SlabpressError:
    """What calls get after close()."""
    return ProducerClosedError("the producer is closed: make another one")


def forked_error() -> SlabpressError:
    """What calls get in a forked child."""
    return ForkedError(
        "this producer belongs to the process that forked this one, and its records would be lost here: make a "
        "producer after the fork"
    )


def check_memory(lines: tuple[PlanLine, ...], what: str) -> None:
    """Raise MemoryShortError if the machine or the cgroup cannot hold what these lines of a plan add.

    The coordinator's own line is taken already: this process has imported what it needs.
    """
    total_bytes = sum(line.total_bytes for line in lines if line.name != COORDINATOR_LINE)
    available = memory_available_bytes()
    if available is not None and total_bytes > available:
        raise MemoryShortError(
            f"the plan takes {format_bytes(total_bytes)} ({what}), but only {format_bytes(available)} are available "
            "here: lower buffer_memory or workers, or raise the memory limit (`slabpress plan` shows every line)"
        )
