"""The children: starting them, hearing of their deaths, replacing them, ending them.

Law 11: they are invisible to the program. They start as ``python -P -m slabpress...`` in a session of their
own, so Ctrl-C in a terminal does not reach them; their deaths are seen through pidfds, and only they are
waited for, by id. No signal handler, no waitpid(-1).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from slabpress.errors import ProcessError
from slabpress.shm.control import FIRST_WORKER, NETWORK, Control
from slabpress.shm.handover import ArenaGrant, Grant, open_pidfd, pidfd_of_self
from slabpress.shm.states import PROCESS_RUNNING, PROCESS_STARTING

START_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 5.0
# A child that dies before it works, this often in a row, will not work: say so instead of trying for ever.
DEATHS_AT_START_MAX: Final = 3
# One that dies sooner than this after its start counts as quick: the next ones start with growing pauses.
QUICK_DEATH_S: Final = 10.0
_ERROR_TAIL_BYTES: Final = 4096
_BACKOFF_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0


class Role(NamedTuple):
    """What a child is: its module, its settings, and the settings of each arena for it."""

    name: str
    module: str
    slot: int
    settings: dict[str, Any]
    arenas: list[ArenaGrant]


class ChildProcess:
    """One child and what is known of its life."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.errors_fd = -1
        self.errors: deque[int] = deque(maxlen=_ERROR_TAIL_BYTES)
        self.deaths_at_start = 0
        self.quick_deaths = 0
        self.started_at = 0.0
        self.restart_at: float | None = None

    def start(self, control: Control, parent: int) -> None:
        """Start the process with its grant."""
        role = self.role
        grant = Grant(role.slot, control.descriptor, [b.descriptors for b in control.bells], parent, role.settings,
                      role.arenas)  # fmt: skip
        setup_read, setup_write = os.pipe()
        self.errors_fd, errors_write = os.pipe()
        os.set_blocking(self.errors_fd, False)
        control.memory.fence()
        self.restart_at = None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", role.module, str(setup_read)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors_write,
                pass_fds=sorted(grant.inherited() | {setup_read}),
                start_new_session=True,
            )
        except BaseException:
            os.close(self.errors_fd)
            self.errors_fd = -1
            raise
        finally:
            os.close(setup_read)
            os.close(errors_write)
            # A grant is a few KB, less than any pipe holds: this does not wait for the child.
            with contextlib.suppress(BrokenPipeError), os.fdopen(setup_write, "wb") as pipe:
                pipe.write(grant.encode())
        try:
            self.pidfd = open_pidfd(self.process.pid)
        except BaseException:
            self.process.kill()  # nobody would hear of its death
            self.process.wait()
            raise

    def read_errors(self) -> None:
        """Keep the tail of what the child writes to its standard error."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.errors_fd, 4096):
                self.errors.extend(data)

    def has_ended(self) -> bool:
        """Whether the process is gone; reaps it."""
        return self.process is not None and self.process.poll() is not None

    def describe_end(self) -> str:
        """How it ended, with the last it said."""
        code = self.process.returncode if self.process else None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        if code == -9:
            how += " (out of memory?)"
        said = bytes(self.errors).decode(errors="replace").strip()
        return f"{self.role.name} {how}" + (f"; it said: {said[-800:]}" if said else "")

    def close(self) -> None:
        """Close this side's descriptors of an ended child."""
        for descriptor in (self.pidfd, self.errors_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self.errors_fd = -1
        self.process = None


class Supervisor:
    """All children of one producer.

    Args:
        control: the control block.
        roles: the children to run.
        recover_worker: called with a dead worker's index before another takes its place.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        control: Control,
        roles: list[Role],
        recover_worker: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._recover_worker = recover_worker
        self._clock = clock
        self._parent = pidfd_of_self()
        self.children = [ChildProcess(role) for role in roles]

    def start(self) -> None:
        """Start every child and wait until all of them work.

        Raises:
            ProcessError: one did not start; its last words are in the message. None is left running.
        """
        try:
            for child in self.children:
                self._start(child)
            self._await_running()
        except BaseException:
            self.kill()
            raise

    def _start(self, child: ChildProcess) -> None:
        slot = child.role.slot
        # Nobody runs in the slot now, so its words are this process's to write.
        self._control.get_up(slot)
        self._control.set_state(slot, PROCESS_STARTING)
        child.started_at = self._clock()
        child.start(self._control, self._parent)

    def _restart(self, child: ChildProcess) -> None:
        """Start another in a dead child's place; a shortage of descriptors or memory may pass, so it is tried again."""
        try:
            self._start(child)
        except OSError as error:
            child.close()
            child.deaths_at_start += 1
            if child.deaths_at_start >= DEATHS_AT_START_MAX:
                raise ProcessError(f"{child.role.name} cannot be started: {error}") from error
            child.restart_at = self._clock() + _BACKOFF_S * 2**child.deaths_at_start

    def _await_running(self) -> None:
        deadline = self._clock() + START_TIMEOUT_S
        bell = self._control.bells[0]
        self._control.lie_down(0)
        while waiting := [c for c in self.children if self._control.state(c.role.slot) != PROCESS_RUNNING]:
            for child in waiting:
                child.read_errors()
                if child.has_ended():
                    child.read_errors()
                    raise ProcessError(f"{child.describe_end()}: it could not start")
            if self._clock() > deadline:
                raise ProcessError(f"{waiting[0].role.name} did not start within {START_TIMEOUT_S} s")
            bell.wait(0.2, [child.pidfd for child in waiting if child.pidfd >= 0])
        self._control.get_up(0)

    def pids(self) -> list[int]:
        """The children's process ids."""
        processes = [child.process for child in self.children]  # the background thread may bury one meanwhile
        return [process.pid for process in processes if process is not None]

    @property
    def watched(self) -> list[int]:
        """Descriptors that become readable when a child dies or says something."""
        pairs = ((child.pidfd, child.errors_fd) for child in self.children)
        return [descriptor for pair in pairs for descriptor in pair if descriptor >= 0]

    def next_restart(self) -> float | None:
        """When the next dead child is due to be replaced."""
        return min((c.restart_at for c in self.children if c.restart_at is not None), default=None)

    def check(self) -> None:
        """Look after the children: recover from deaths, and replace who is due.

        Raises:
            ProcessError: one keeps dying before it works.
        """
        for child in self.children:
            if child.process is not None:
                child.read_errors()
                if child.has_ended():
                    self._bury(child)
            if child.restart_at is not None and self._clock() >= child.restart_at:
                self._restart(child)

    def _bury(self, child: ChildProcess) -> None:
        import logging

        child.read_errors()
        slot = child.role.slot
        worked = self._control.state(slot) == PROCESS_RUNNING
        lived_s = self._clock() - child.started_at
        child.deaths_at_start = 0 if worked else child.deaths_at_start + 1
        child.quick_deaths = 0 if lived_s >= QUICK_DEATH_S else child.quick_deaths + 1
        text = child.describe_end()
        child.close()
        if child.deaths_at_start >= DEATHS_AT_START_MAX:
            raise ProcessError(f"{text}: it died {child.deaths_at_start} times before it worked")
        logging.getLogger("slabpress").warning("%s: starting another", text)
        self._control.get_up(slot)
        if slot != NETWORK:
            self._recover_worker(slot - FIRST_WORKER)
            # What it published last may have rung for nobody, and what it woke up for is still to be done.
            self._control.wake(NETWORK)
            self._control.wake_one_worker()
        pause = _BACKOFF_S * 2**child.quick_deaths if child.quick_deaths > 1 else 0.0
        child.restart_at = self._clock() + min(_BACKOFF_MAX_S, pause)

    def stop(self) -> None:
        """Ask every child to end, wait, and kill those that do not."""
        self._control.stop()
        deadline = self._clock() + END_TIMEOUT_S
        for child in self.children:
            if child.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - self._clock()))
        self.kill()

    def kill(self) -> None:
        """End every child that is left, at once, and close what belonged to them."""
        for child in self.children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                child.close()
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1
