"""What is compiled: the native module (Cython), and the children's modules (mypyc), which stay Python.

A record that comes alone finds the network process asleep and its caches cold, and batches of 16 KiB are many: what
both cost there was Python. DESIGN.md has the figures (*Measured, and decided by it*).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from mypyc.build import mypycify
from setuptools import Extension, setup

# What a batch passes through in the children. What is done now and then (asking for metadata, names and producer ids,
# the ends of things) is interpreted, and so is what only the job does: there a signal handler may raise anywhere.
_ON_A_BATCHS_WAY: Final = {
    "network": (
        "backoff",
        "batches",
        "broker",
        "brokers",
        "connection",
        "counters",
        "framing",
        "loop",
        "metadata",
        "outcomes",
        "partition",
        "poller",
        "produce",
        "produce_answer",
        "produce_codec",
        "queues",
        "room",
        "sequences",
        "transport",
        "upkeep",
        "wire",
    ),
    "shm": ("admission", "control", "doorbell"),
    "workers": ("calls", "compressor", "worker"),
}
# The types of what is installed here are no part of the source: everywhere the same is compiled.
_MYPY: Final = ("--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent")
# What setuptools is asked when nothing is built; mypyc would write its C for each.
_NOTHING_IS_BUILT: Final = frozenset({"egg_info", "dist_info", "sdist"})


def native_module() -> Extension:
    """The hot path, in Cython."""
    parts = sorted(map(str, Path("slabpress/native").glob("*.pxi")))
    return Extension("slabpress._native", ["slabpress/_native.pyx"], depends=parts, extra_compile_args=["-O3"])


def children_modules() -> list[Extension]:
    """The children's, one shared library and what finds each module in it."""
    if not _NOTHING_IS_BUILT.isdisjoint(sys.argv):
        return []
    modules = [f"slabpress/{package}/{name}.py" for package, names in _ON_A_BATCHS_WAY.items() for name in names]
    return mypycify([*_MYPY, *modules], group_name="slabpress._compiled")


setup(ext_modules=[native_module(), *children_modules()])
