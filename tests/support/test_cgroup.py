"""The rig's cgroups: they hold what they are told to hold, kill what is more, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.cgroup import CgroupError, MemoryCgroup, find_places, why_not

MIB = 1 << 20
LIMIT_BYTES = 48 * MIB

ALLOCATE = "held = bytearray({size})"
# Shared memory without a name, allocated and never touched, as the arena is.
ALLOCATE_SHARED = "import os; os.posix_fallocate(os.memfd_create('x'), 0, {size})"


@pytest.fixture(scope="module")
def possible() -> None:
    missing = why_not()
    if missing is not None:
        pytest.skip(missing)


@pytest.mark.usefixtures("possible")
@pytest.mark.parametrize("program", [ALLOCATE, ALLOCATE_SHARED])
def test_a_program_that_takes_more_than_the_limit_is_killed(program: str) -> None:
    with MemoryCgroup(LIMIT_BYTES) as group:
        fits = group.run([sys.executable, "-c", program.format(size=20 * MIB)])
        assert (fits.returncode, fits.stdout, fits.stderr) == (0, "", "")
        assert group.oom_kills == 0
        assert 20 * MIB < group.peak_bytes < LIMIT_BYTES
        assert group.run([sys.executable, "-c", program.format(size=100 * MIB)]).returncode == -9
        assert group.oom_kills == 1
        assert group.peak_bytes <= LIMIT_BYTES


@pytest.mark.usefixtures("possible")
def test_the_peak_outlasts_what_was_given_back() -> None:
    with MemoryCgroup(LIMIT_BYTES) as group:
        group.run([sys.executable, "-c", ALLOCATE.format(size=20 * MIB)])
        assert group.usage_bytes < 10 * MIB < 20 * MIB < group.peak_bytes


@pytest.mark.usefixtures("possible")
def test_children_are_in_the_group_and_end_with_it() -> None:
    with MemoryCgroup(LIMIT_BYTES) as group:
        shell = group.popen(["sh", "-c", "sleep 600 & sleep 600 & echo ready; wait"], stdout=subprocess.PIPE)
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        members = group.pids()
        assert len(members) == 3
        assert members == {shell.pid, *(child.pid for child in psutil.Process(shell.pid).children(recursive=True))}
        folder = group.folder
        assert folder.is_dir()
    assert shell.returncode == -9
    assert not folder.exists()  # the kernel removes no group that has processes


@pytest.mark.usefixtures("possible")
def test_the_group_is_removed_when_the_test_fails() -> None:
    group = MemoryCgroup(LIMIT_BYTES)
    started = []

    def fail() -> None:
        with group:
            started.append(group.popen(["sleep", "600"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].returncode == -9
    assert not group.folder.exists()


@pytest.mark.usefixtures("possible")
def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    with MemoryCgroup(LIMIT_BYTES) as group:
        dead = subprocess.Popen(["true"])
        dead.wait()
        left = group.folder.with_name(f"slabpress-test-{dead.pid}-1")
        left.mkdir()
        with MemoryCgroup(LIMIT_BYTES):
            assert not left.exists()
            assert group.folder.is_dir()


def _made_up(folder: Path, membership: str, **files: str) -> tuple[Path, Path]:
    """A cgroup file system and a /proc/self/cgroup; `__` in a name stands for a slash."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("subtree", "cgroup.subtree_control")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "membership").write_text(membership)
    return root, folder / "membership"


def test_version_1_is_used_where_it_has_the_memory_controller(tmp_path: Path) -> None:
    files = {"memory__job__tasks": "", "unified__job__subtree": "hugetlb\n"}
    root, membership = _made_up(tmp_path, "4:memory:/job\n1:name=systemd:/\n0::/job\n", **files)
    (place,) = find_places(root, membership)
    assert (place.folder, place.version.limit) == (root / "memory/job", "memory.limit_in_bytes")


def test_in_a_container_whose_own_path_is_not_mounted_the_mounts_root_is_used(tmp_path: Path) -> None:
    root, membership = _made_up(tmp_path, "4:memory:/docker/abc\n", memory__tasks="")
    assert [place.folder for place in find_places(root, membership)] == [root / "memory"]


def test_version_2_groups_are_made_where_the_controller_is_given_on(tmp_path: Path) -> None:
    files = {"subtree": "cpu memory pids\n", "a__subtree": "memory\n", "a__b__subtree": "", "a__b__c__subtree": ""}
    root, membership = _made_up(tmp_path, "0::/a/b/c\n", **files)
    places = find_places(root, membership)
    assert [place.folder for place in places] == [root / "a", root]
    assert {place.version.limit for place in places} == {"memory.max"}


@pytest.mark.parametrize(
    ("membership", "complaint"),
    [
        ("0::/a\n", r"no cgroup from .*/a up to .* has the memory controller in its cgroup\.subtree_control"),
        ("4:memory:/a\n", "/memory is not mounted"),
        ("4:cpu,cpuacct:/a\n", "names no memory cgroup of version 1 and none of version 2"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, membership: str, complaint: str) -> None:
    root, file = _made_up(tmp_path, membership, a__subtree="cpu\n")
    with pytest.raises(CgroupError, match=complaint):
        find_places(root, file)
    file.unlink()
    with pytest.raises(CgroupError, match="no cgroups here"):
        find_places(root, file)
