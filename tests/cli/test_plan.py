"""``slabpress plan``."""

from __future__ import annotations

import json

from slabpress import Config, PipelinePlan, plan_memory
from slabpress.footprints import process_lines
from slabpress.plan import plan_producer
from tests.cli.rig import slabpress

OPTIONS = ("--compression", "zstd:3", "--workers", "3", "--buffer-memory", "8MiB", "--option", "slab_size=8192")


def expected() -> Config:
    return Config.of(
        "h:1", compression_type="zstd", compression_level=3, workers=3, buffer_memory="8MiB", slab_size=8192
    )


def test_the_table_and_the_sizes_are_those_of_the_plan() -> None:
    ended = slabpress("plan", *OPTIONS)
    assert (ended.code, ended.errors) == (0, [])
    assert ended.out.startswith(plan_memory(expected()).table())
    assert ended.out.endswith("\n\nlargest record 1 MiB, batch size 320 KiB, slab size 8 KiB\n")


def test_json_has_the_same_figures_in_bytes() -> None:
    ended = slabpress("plan", *OPTIONS, "--json")
    assert (ended.code, ended.errors) == (0, [])
    assert json.loads(ended.out) == plan_memory(expected()).as_dict()
    assert json.loads(ended.out)["arena_bytes"] == 8 << 20


def test_producers_that_share_the_processes() -> None:
    ended = slabpress("plan", *OPTIONS, "--producers", "20")
    assert (ended.code, ended.errors) == (0, [])
    plan = PipelinePlan.of(3, process_lines(expected(), 3), [plan_producer(expected(), 3)] * 20)
    assert ended.out.startswith(plan.table())
    assert plan.total_bytes > 20 * (8 << 20)
    alone = plan_memory(expected()).total_bytes
    assert alone < plan.total_bytes < 20 * alone
    processes = [line for line in plan.lines if line.name in ("worker process", "codec workspace", "split workspace")]
    assert [line.units for line in processes] == [3, 3, 3]


def test_no_producers_are_no_plan() -> None:
    ended = slabpress("plan", "--producers", "0")
    assert ended.code == 2
    assert "--producers" in ended.errors[0]
