"""``slabpress plan``."""

from __future__ import annotations

import json

from slabpress import Config, plan_memory
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
    assert ended.out.endswith("\n\nlargest record 1 MiB, batch size 256 KiB, slab size 8 KiB\n")


def test_json_has_the_same_figures_in_bytes() -> None:
    ended = slabpress("plan", *OPTIONS, "--json")
    assert (ended.code, ended.errors) == (0, [])
    assert json.loads(ended.out) == plan_memory(expected()).as_dict()
    assert json.loads(ended.out)["arena_bytes"] == 8 << 20
