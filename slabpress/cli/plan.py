"""``slabpress plan``: every byte that a producer would take, before there is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from slabpress.cli.options import settings_of
from slabpress.config import Config
from slabpress.plan import MemoryPlan, plan_memory
from slabpress.units import format_bytes

if TYPE_CHECKING:
    import argparse

# The plan does not depend on the cluster, but a Config is complete only with a server.
_ANY_SERVER: Final = "localhost:9092"


def run(arguments: argparse.Namespace) -> int:
    """Print the plan and return 0."""
    plan = plan_memory(Config.of(_ANY_SERVER, **settings_of(arguments)))
    if arguments.json:
        print(json.dumps(plan.as_dict(), indent=2))
    else:
        print(plan.table())
        print(f"\n{sizes(plan)}")
    return 0


def sizes(plan: MemoryPlan) -> str:
    """The sizes that follow from the settings, in one line."""
    return (
        f"largest record {format_bytes(plan.largest_record_bytes)}, "
        f"batch size {format_bytes(plan.batch_bytes)}, slab size {format_bytes(plan.geometry.slab_bytes)}"
    )
