"""How many CPUs and how much memory a container leaves, in both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slabpress import cpus
from slabpress.cpus import cgroup_cpu_quota, cgroup_folders, memory_available_bytes, usable_cpus


class _Cgroups:
    """A made-up /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "membership"
        self.membership.write_text("")
        self.meminfo = folder / "meminfo"
        self.meminfo.write_text("MemTotal:       8 kB\nMemAvailable:   1000000 kB\n")

    def belongs_to(self, *lines: str) -> None:
        self.membership.write_text("".join(line + "\n" for line in lines))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def quota(self) -> float | None:
        return cgroup_cpu_quota(self.root, self.membership)

    def available(self) -> int | None:
        return memory_available_bytes(self.root, self.membership, self.meminfo)


@pytest.fixture
def cgroups(tmp_path: Path) -> _Cgroups:
    return _Cgroups(tmp_path)


def test_version_2_quota(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("0::/job")
    assert cgroups.quota() is None
    cgroups.write("job/cpu.max", "150000 100000\n")
    assert cgroups.quota() == 1.5
    cgroups.write("job/cpu.max", "max 100000\n")
    assert cgroups.quota() is None


def test_version_1_quota(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("7:memory:/job", "4:cpu,cpuacct:/job", "1:name=systemd:/other")
    cgroups.write("cpu/job/cpu.cfs_quota_us", "-1\n")
    cgroups.write("cpu/job/cpu.cfs_period_us", "100000\n")
    assert cgroups.quota() is None
    cgroups.write("cpu/job/cpu.cfs_quota_us", "250000\n")
    assert cgroups.quota() == 2.5


def test_the_tightest_quota_of_all_parents_counts(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("0::/a/b/c")
    cgroups.write("a/b/c/cpu.max", "400000 100000")
    cgroups.write("a/b/cpu.max", "max 100000")
    cgroups.write("a/cpu.max", "300000 100000")
    assert cgroups.quota() == 3
    cgroups.write("cpu.max", "50000 100000")
    assert cgroups.quota() == 0.5


def test_in_a_container_whose_own_path_is_not_mounted_the_root_is_looked_at(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("0::/kubepods/pod1234/abc")
    cgroups.write("cpu.max", "200000 100000")
    assert cgroups.quota() == 2
    assert cgroup_folders(cgroups.root, cgroups.membership, "cpu") == [cgroups.root]


@pytest.mark.parametrize("text", ["", "garbage", "1 2 3"])
def test_a_quota_that_cannot_be_read_is_none(cgroups: _Cgroups, text: str) -> None:
    cgroups.belongs_to("0::/")
    cgroups.write("cpu.max", text)
    assert cgroups.quota() is None


def test_a_quota_that_is_no_number_is_none(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("0::/")
    cgroups.write("cpu.max", "many 100000")
    assert cgroups.quota() is None


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("100000", 1), ("150000", 2), ("9900000", 4)])
def test_workers_are_the_affinity_or_the_quota_rounded_up(
    cgroups: _Cgroups, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    cgroups.belongs_to("0::/")
    cgroups.write("cpu.max", f"{quota} 100000")
    assert usable_cpus(cgroups.root, cgroups.membership) == expected


def test_without_quota_and_affinity_all_cpus_count(cgroups: _Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(cgroups.root, cgroups.membership) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(cgroups.root, cgroups.membership) == 1


def test_here_there_is_at_least_one_cpu() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def test_available_memory_is_the_machines_without_a_limit(cgroups: _Cgroups) -> None:
    assert cgroups.available() == 1_000_000 * 1024
    cgroups.belongs_to("0::/job")
    cgroups.write("job/memory.max", "max\n")
    cgroups.write("job/memory.current", "5\n")
    assert cgroups.available() == 1_000_000 * 1024
    cgroups.meminfo.unlink()
    assert cgroups.available() is None


def test_version_2_memory_limit_counts_what_can_be_given_back(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("0::/job")
    cgroups.write("job/memory.max", "100000000")
    cgroups.write("job/memory.current", "60000000")
    assert cgroups.available() == 40_000_000
    cgroups.write("job/memory.stat", "anon 1\ninactive_file 15000000\nactive_file 5000000\n")
    assert cgroups.available() == 60_000_000
    cgroups.write("memory.max", "70000000")
    cgroups.write("memory.current", "65000000")
    assert cgroups.available() == 5_000_000


def test_version_1_memory_limit(cgroups: _Cgroups) -> None:
    cgroups.belongs_to("7:memory:/job")
    cgroups.write("memory/job/memory.limit_in_bytes", "9223372036854771712")
    cgroups.write("memory/job/memory.usage_in_bytes", "60000000")
    assert cgroups.available() == 1_000_000 * 1024
    cgroups.write("memory/job/memory.limit_in_bytes", "100000000")
    assert cgroups.available() == 40_000_000
    cgroups.write(
        "memory/job/memory.stat",
        "cache 9\ninactive_file 5\nactive_file 6\ntotal_inactive_file 8000000\ntotal_active_file 2000000\n",
    )
    assert cgroups.available() == 50_000_000
    cgroups.write("memory/job/memory.usage_in_bytes", "900000000")
    assert cgroups.available() == 0


def test_here_there_is_some_memory() -> None:
    available = cpus.memory_available_bytes()
    assert available is not None
    assert available > 0
