"""Jobs that are killed: starting one, talking to it, and looking at what is left of it.

A job and its children carry a mark in their environment, so that its orphans are found, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import psutil

from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import COMPRESSING, OPEN
from tests.crash.tally import Tally
from tests.integration.pipeline.looks import until

MARK: Final = "SLABPRESS_DEATHS_JOB"
NETWORK: Final = "slabpress.network"
WORKER: Final = "slabpress.workers"
_ROOT: Final = Path(__file__).parents[3]


class Found(NamedTuple):
    """A process of a job: its id and what it runs."""

    pid: int
    module: str

    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        return False


class Job:
    """One run of ``job.py``; its keywords are explained there.

    Args:
        base: where its files go; each has another ending.
        bootstrap_servers: the cluster.
        topic: where it sends to.
        before: a command that starts it, if it is not to be started right away.
        spec: what else the job is told.
    """

    def __init__(
        self, base: Path, bootstrap_servers: str, topic: str, *, before: tuple[str, ...] = (), **spec: Any
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._files: set[int] = set()
        self.pid = 0
        self.log = base.with_suffix(".log")
        settings = {"orphan_log": str(self.log)} | spec.pop("settings", {})
        self.tally = Tally(base.with_suffix(".tally"), new=True)
        told = {"bootstrap_servers": bootstrap_servers, "topic": topic, "tally": str(base.with_suffix(".tally"))}
        self.process = subprocess.Popen(
            [
                *before,
                sys.executable,
                "-m",
                "tests.integration.deaths.job",
                json.dumps(told | spec | {"settings": settings}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, MARK: self._mark},
            start_new_session=True,
        )

    def hear(self) -> Any:
        """Wait for the next line that the job says."""
        line = cast("IO[str]", self.process.stdout).readline()
        assert line, "the job has ended before it said what it was to say"
        said = json.loads(line)
        self.pid = said.get("pid", self.pid)
        return said

    def say(self) -> None:
        """Let the job go on."""
        stdin = cast("IO[str]", self.process.stdin)
        stdin.write("go\n")
        stdin.flush()

    def sent(self) -> tuple[dict[str, int], dict[str, int]]:
        """By sender, how many records send() has accepted, and how many it was called with."""
        claims = {f"t{thread}": claim for thread, claim in enumerate(self.tally.claims) if claim.attempted}
        return (
            {name: claim.accepted for name, claim in claims.items()},
            {name: claim.attempted for name, claim in claims.items()},
        )

    def children(self, module: str = "slabpress.") -> list[Found]:
        """Its children that live, found by their mark."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if f"{MARK}={self._mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    continue
                running = next((part for part in psutil.Process(pid).cmdline() if part.startswith(module)), None)
                if running is not None and (one := Found(pid, running)).is_alive():
                    found.append(one)
        return sorted(found)

    def stop_workers(self) -> list[Found]:
        """Stop all workers; what is sealed then waits for them."""
        workers = self.children(WORKER)  # in the order in which they were started, which is that of their indices
        for worker in workers:
            _stop(worker)
        return workers

    def let_one_begin(self, workers: list[Found]) -> Found:
        """Of stopped workers, stop the first again when it has a batch in its hands, and let the others go on."""
        victim, *others = workers

        def has_begun() -> bool:
            if _compresses(victim.pid, 0):
                return True
            psutil.Process(victim.pid).resume()
            _stop(victim)
            return False

        until(has_begun, "a worker to have a batch in its hands")
        for worker in others:
            psutil.Process(worker.pid).resume()
        return victim

    def note_memory(self) -> None:
        """Remember which shared memory its processes have, to look for it when they are gone."""
        for pid in [self.pid, *(child.pid for child in self.children())]:
            self._files |= _memory_of(pid)
        assert self._files

    def kill(self, number: signal.Signals = signal.SIGKILL, *, group: bool = False) -> None:
        """End the job, or all of its process group, and wait for its end."""
        if not self._files:
            self.note_memory()
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)
        until(lambda: not Found(self.pid, "").is_alive(), "the job to end")

    def await_gone(self) -> None:
        """Wait until none of its children runs, and nobody has their memory any more."""
        assert self._files
        until(lambda: not Found(self.pid, "").is_alive(), "the job to end")
        until(lambda: not self.children(), "its children to end")
        # A process that is just ending has lost its environment, and with it its mark, before its descriptors.
        until(lambda: not [pid for pid in psutil.pids() if self._files & _memory_of(pid)], "their memory to be let go")

    def await_drain(self) -> None:
        """Wait until the orphans have begun to deliver: nothing is open any more."""
        [network] = self.children(NETWORK)
        with _arena_of(network.pid) as arena:
            until(lambda: arena.batch_states.find(OPEN) < 0, "the open batches to be sealed")

    def log_lines(self) -> list[str]:
        """What its orphans have said."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def close(self) -> None:
        """End whatever is left."""
        self.process.kill()
        self.process.communicate()
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        until(lambda: not self.children(), "what was left of the job to end")
        self.tally.close()


@contextlib.contextmanager
def _arena_of(pid: int) -> Iterator[Arena]:
    """The first arena of a process."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    link = next(link for link in links if str(link.readlink()).startswith("/memfd:slabpress-arena"))
    arena = Arena.attach(os.open(link, os.O_RDWR | os.O_CLOEXEC))
    try:
        yield arena
    finally:
        arena.close()


def _stop(found: Found) -> None:
    process = psutil.Process(found.pid)
    process.suspend()
    until(lambda: process.status() == psutil.STATUS_STOPPED, "the process to stop")


def _compresses(pid: int, worker: int) -> bool:
    """Whether a worker has a batch that it has not finished."""
    with _arena_of(pid) as arena:
        descriptors = Descriptors(arena)
        held = [index for index in arena.batch_states.find_all(COMPRESSING) if descriptors.worker(index) == worker]
        return any(descriptors.output(index).payload_bytes == 0 for index in held)


def _memory_of(pid: int) -> set[int]:
    """The inodes of slabpress's shared memory that a process has mapped or holds a descriptor of."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found |= {int(line.split()[4]) for line in lines if "memfd:slabpress" in line}
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:slabpress" in str(link.readlink()):
                    found.add(link.stat().st_ino)
    return found
