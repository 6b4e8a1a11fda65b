"""What every benchmark says beside its figures: where it ran, with what, and how noisy it was."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("slabpress", "confluent-kafka", "zstandard", "lz4", "cramjam", "zlib-ng", "kio", "crc32c")


def machine() -> dict[str, Any]:
    """The machine, the interpreter and the versions that matter."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result with the machine it was measured on."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine()} | result, indent=2) + "\n")
