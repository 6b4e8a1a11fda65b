"""``slabpress plan``: every byte that a producer would take, before there is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from slabpress.cli.options import settings_of
from slabpress.config import Config
from slabpress.footprints import process_lines
from slabpress.plan import MemoryPlan, PipelinePlan, plan_memory, plan_producer, workers_of
from slabpress.units import format_bytes

if TYPE_CHECKING:
    import argparse

# The plan does not depend on the cluster, but a Config is complete only with a server.
_ANY_SERVER: Final = "localhost:9092"


def run(arguments: argparse.Namespace) -> int:
    """Print the plan and return 0."""
    config = Config.of(_ANY_SERVER, **settings_of(arguments))
    plan = plan_memory(config)
    whole = plan if arguments.producers == 1 else _shared(config, arguments.producers)
    if arguments.json:
        print(json.dumps(whole.as_dict(), indent=2))
    else:
        print(whole.table())
        print(f"\n{sizes(plan)}")
    return 0


def _shared(config: Config, producers: int) -> PipelinePlan:
    """The plan of a Pipeline with so many producers of these settings."""
    one = plan_producer(config, workers_of(config))
    return PipelinePlan.of(one.workers, process_lines(config, one.workers), [one] * producers)


def sizes(plan: MemoryPlan) -> str:
    """The sizes that follow from the settings, in one line."""
    return (
        f"largest record {format_bytes(plan.largest_record_bytes)}, "
        f"batch size {format_bytes(plan.batch_bytes)}, slab size {format_bytes(plan.geometry.slab_bytes)}"
    )
