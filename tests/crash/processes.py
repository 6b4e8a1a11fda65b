"""The processes of a job as the rig sees them from outside: by a word in their environment, and by what they run."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final, NamedTuple

import psutil

MARK: Final = "SLABPRESS_CRASH_RUN"
JOB: Final = "tests.crash.job"
NETWORK: Final = "slabpress.network"
WORKER: Final = "slabpress.workers"
OTHER: Final = "not a role yet"
MORTAL: Final = {NETWORK: "tests.crash.mortal_network", WORKER: "tests.crash.mortal_workers"}
_ROLES: Final = {JOB: JOB, NETWORK: NETWORK, WORKER: WORKER, **{mortal: role for role, mortal in MORTAL.items()}}
_ARENA: Final = "/memfd:slabpress-arena"


class Found(NamedTuple):
    """A process of some run of the job.

    Attributes:
        pid: its id.
        role: JOB, NETWORK, WORKER, or OTHER for one that is just being started.
        mark: the word that the rig put into its run's environment.
        created: when it started, which tells it from another with its id.
    """

    pid: int
    role: str
    mark: str
    created: float

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    @property
    def arenas(self) -> int:
        """How many arenas it has mapped: none before it was told of any."""
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
            return len({line.split()[4] for line in maps if _ARENA in line})  # the inode
        return 0

    def send(self, number: signal.Signals) -> bool:
        """Send a signal, to this process and to no other that has its id; False if it is gone."""
        if not self.is_alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False


def find(mark: str) -> list[Found]:
    """The living processes whose mark begins with this."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            own = _mark_of(process.pid)
            if own is None or not own.startswith(mark):
                continue
            command = process.cmdline()
            role = next((_ROLES[word] for word in command if word in _ROLES), OTHER)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(Found(process.pid, role, own, process.create_time()))
    return sorted(found, key=lambda one: (one.created, one.pid))


def _mark_of(pid: int) -> str | None:
    wanted = MARK.encode() + b"="
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode()
    return None
