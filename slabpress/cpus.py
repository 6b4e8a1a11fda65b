"""How many CPUs this process may really use: affinity and the cgroup's quota, not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cpus(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs of this process's affinity, or fewer where a cgroup quota allows less; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_quota(root, membership)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_cpu_quota(root: Path, membership: Path) -> float | None:
    """The tightest CPU quota of this process's cgroups, in CPUs; None where there is none."""
    quotas = [quota for folder in cgroup_folders(root, membership, "cpu") if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(root: Path, membership: Path, controller: str) -> list[Path]:
    """This process's cgroup folders for a controller and all their parents, in version 2 and version 1.

    Inside a container the path in /proc/self/cgroup may not exist below the mount: the mount's own root is
    always looked at.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        own = base / path.lstrip("/")
        folders.extend(folder for folder in (own, *own.parents) if folder.is_relative_to(base) and folder.is_dir())
    return folders


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota == "max" or int(quota) <= 0:
            return None
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def memory_available_bytes(
    root: Path = _CGROUP_ROOT,
    membership: Path = Path("/proc/self/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Bytes this process could still take: the machine's available memory or its cgroups', the less of them."""
    limits = [_cgroup_room(folder) for folder in cgroup_folders(root, membership, "memory")]
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    return min((limit for limit in limits if limit is not None), default=None)


def _cgroup_room(folder: Path) -> int | None:
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            text = (folder / limit_name).read_text().strip()
            if text == "max":
                return None
            limit, used = int(text), int((folder / usage_name).read_text())
        except (OSError, ValueError):
            continue
        if limit >= 1 << 60:  # version 1 writes "no limit" as a number
            return None
        # Page cache counts as used and is given back on demand, so usage understates the room; a limit that is
        # smaller than the arena is certain.
        return max(0, limit - _anonymous_bytes(folder, used))
    return None


def _anonymous_bytes(folder: Path, used: int) -> int:
    try:
        fields = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return used
    # Version 1 counts its children's use as well, and has their cache under "total_" names.
    cache = [int(fields.get(f"total_{name}", fields.get(name, "0"))) for name in ("inactive_file", "active_file")]
    return max(0, used - sum(cache))
