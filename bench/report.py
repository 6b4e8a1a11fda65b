"""What every benchmark says beside its figures: where it ran, with what, and how noisy it was."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "slabpress",
    "confluent-kafka",
    "zstandard",
    "lz4",
    "cramjam",
    "zlib-ng",
    "kio",
    "crc32c",
    "kafka-python",
    "aiokafka",
)
_PROCESSOR = Path("/proc/cpuinfo")


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
        "cores": os.cpu_count(),
        "processor": processor(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor() -> str:
    """The processor's model, as Linux names it."""
    lines = _PROCESSOR.read_text().splitlines() if _PROCESSOR.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least this share of the sorted values does not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("no values: a percentile needs one at least")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Half of the values are no greater than p50, and so on."""
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: percentile(ordered, share) for name, share in shares.items()}


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result with the machine it was measured on."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine()} | result, indent=2) + "\n")
