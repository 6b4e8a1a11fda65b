"""A memory cgroup for one program of a test, in version 1 and version 2 of cgroups.

What the program and its children take is charged to the group; what stands outside (a broker, a proxy, the test
itself) is not. Nothing of the group is swapped out: what does not fit is killed by the kernel.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple, Self

from tests.support.kafka_install import spawn, wait_until

ROOT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
SWAPS: Final = Path("/proc/swaps")
END_TIMEOUT_S: Final = 20.0

_PREFIX: Final = "slabpress-test-"
_NOT_JOINED: Final = 125
# The shell moves itself, then becomes the program: no page of the program is charged to anybody else.
_JOIN: Final = f'echo $$ > "$0" || exit {_NOT_JOINED}; exec "$@"'
_numbers = itertools.count(1)


class CgroupError(RuntimeError):
    """This machine gives the test no memory cgroup; the message says what is missing."""


class _Version(NamedTuple):
    """The names of one version's files; 0 in `swap` keeps a group from swapping."""

    limit: str
    usage: str
    peak: str
    oom: str
    swap: str


_V1: Final = _Version(
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    peak="memory.max_usage_in_bytes",
    oom="memory.oom_control",
    swap="memory.swappiness",
)
_V2: Final = _Version(
    limit="memory.max", usage="memory.current", peak="memory.peak", oom="memory.events", swap="memory.swap.max"
)


class Place(NamedTuple):
    """Where a group can be made."""

    version: _Version
    folder: Path


def find_places(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Place]:
    """The folders in which a group with a memory limit may be made, the nearest to this process first.

    A machine with both versions mounted has the memory controller in one of them, and if version 1 has it,
    /proc/self/cgroup says so.

    Raises:
        CgroupError: There is none.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError as error:
        raise CgroupError(f"no cgroups here: {error}") from error
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return [Place(_V1, _own_folder(root / "memory", path))]
    for _, controllers, path in lines:
        if controllers == "":
            return _unified_places(root, path)
    raise CgroupError(f"{membership} names no memory cgroup of version 1 and none of version 2")


def _own_folder(base: Path, path: str) -> Path:
    """This process's folder; in a container its path may not exist below the mount, whose root is then its own."""
    own = base / path.lstrip("/")
    found = own if own.is_dir() else base
    if not found.is_dir():
        raise CgroupError(f"{base} is not mounted")
    return found


def _unified_places(root: Path, path: str) -> list[Place]:
    """Version 2 has limits only where the folder above gives the controller to its children.

    A folder that has processes of its own, such as this one's, cannot do that, unless it is the machine's root: so
    the group usually becomes a sibling.
    """
    own = _own_folder(root, path)
    above = [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    giving = [folder for folder in above if "memory" in _words(folder / "cgroup.subtree_control")]
    if not giving:
        raise CgroupError(f"no cgroup from {own} up to {root} has the memory controller in its cgroup.subtree_control")
    return [Place(_V2, folder) for folder in giving]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


@functools.cache
def why_not() -> str | None:
    """What this machine lacks for a `MemoryCgroup`, in one line; None when all is there. It makes one to find out."""
    try:
        with MemoryCgroup(64 << 20) as group:
            group.run(["true"])
            _ = (group.peak_bytes, group.oom_kills)
    except (CgroupError, OSError) as error:
        return f"no memory cgroup can be made: {error}"
    return None


class MemoryCgroup:
    """A new memory cgroup without swap, for programs that it starts; leaving it kills what still runs in it.

    Args:
        limit_bytes: What all processes of the group may take together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._version, self.folder = _make_folder()
        try:
            self._write(self._version.limit, self.limit_bytes)
            self._forbid_swap()
        except BaseException:
            self.folder.rmdir()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._started:
            process.kill()
        self._kill_all()
        for process in self._started:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        wait_until(self._is_removed, f"removal of {self.folder}", END_TIMEOUT_S)

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program in the group. Its children will be in it too.

        Raises:
            CgroupError: The kernel did not let it in.
        """
        command = ["sh", "-c", _JOIN, str(self.folder / "cgroup.procs"), *argv]
        process = spawn(command, stdin=stdin, stdout=stdout, stderr=stderr)
        self._started.append(process)
        wait_until(lambda: process.poll() is not None or process.pid in self.pids(), "a process in the group", 20)
        if process.returncode == _NOT_JOINED:
            raise CgroupError(f"a process cannot be moved into {self.folder}")
        return process

    def run(self, argv: Sequence[str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program in the group to its end.

        Raises:
            CgroupError: The kernel did not let it in.
            TimeoutExpired: It took longer; it is killed when the group ends.
        """
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(list(argv), process.returncode, out.decode(), err.decode())

    @property
    def usage_bytes(self) -> int:
        """What the group is charged now, page cache included."""
        return self._number(self._version.usage)

    @property
    def peak_bytes(self) -> int:
        """The most it was ever charged, page cache included."""
        return self._number(self._version.peak)

    @property
    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        return self._field(self._version.oom, "oom_kill")

    def pids(self) -> set[int]:
        """The processes in the group."""
        # 0 stands for a process that this one cannot see; to kill it would be to kill this one.
        return {int(word) for word in _words(self.folder / "cgroup.procs")} - {0}

    def _forbid_swap(self) -> None:
        if (self.folder / "memory.memsw.limit_in_bytes").exists():
            self._write("memory.memsw.limit_in_bytes", self.limit_bytes)  # version 1: memory and swap together
        if (self.folder / self._version.swap).exists():
            self._write(self._version.swap, 0)
        elif len(_lines(SWAPS)) > 1:
            raise CgroupError(f"swap is on, and {self.folder} has no {self._version.swap} to forbid it")

    def _kill_all(self) -> None:
        if (self.folder / "cgroup.kill").exists():
            self._write("cgroup.kill", 1)

        def is_empty() -> bool:
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        wait_until(is_empty, f"no process in {self.folder}", END_TIMEOUT_S)

    def _is_removed(self) -> bool:
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # busy: a process that has just ended is still being taken out
            return False
        return True

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _number(self, name: str) -> int:
        try:
            return int((self.folder / name).read_text())
        except FileNotFoundError as error:  # memory.peak came with Linux 5.19
            raise CgroupError(f"this kernel has no {name}") from error

    def _field(self, name: str, field: str) -> int:
        for line in _lines(self.folder / name):
            key, _, value = line.partition(" ")
            if key == field:
                return int(value)
        raise CgroupError(f"this kernel's {name} has no {field}")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _make_folder() -> tuple[_Version, Path]:
    refused = []
    for version, home in find_places():
        _remove_orphans(home)
        folder = home / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        try:
            folder.mkdir()
        except OSError as error:
            refused.append(str(error))
            continue
        return version, folder
    raise CgroupError("; ".join(refused))


def _remove_orphans(home: Path) -> None:
    """Remove the empty groups of test runs that were killed before they could do it."""
    for folder in home.glob(f"{_PREFIX}*-*"):
        maker = folder.name.removeprefix(_PREFIX).split("-")[0]
        if not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):  # not empty: its processes are of a run in another container
                folder.rmdir()
