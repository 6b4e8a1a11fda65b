"""The children: starting them, hearing of their deaths, replacing them, ending them.

Law 11: they are invisible to the program. They start as ``python -P -m slabpress...`` in a session of their
own, so Ctrl-C in a terminal does not reach them; their deaths are seen through pidfds, and only they are
waited for, by id. No signal handler, no waitpid(-1).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from slabpress.errors import ProcessError
from slabpress.pipeline.child import ChildProcess, Role
from slabpress.shm.control import COORDINATOR, NETWORK, Control
from slabpress.shm.handover import START_TIMEOUT_S, ArenaGrant, encode_change, pidfd_of_self
from slabpress.shm.states import PROCESS_RUNNING, PROCESS_STARTING

END_TIMEOUT_S: Final = 5.0
# A child that dies before it works, this often in a row, will not work: say so instead of trying for ever.
DEATHS_AT_START_MAX: Final = 3
# One that dies sooner than this after its start counts as quick: the next ones start with growing pauses.
QUICK_DEATH_S: Final = 10.0
_BACKOFF_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0
# A channel that is full is tried again after this: its reader is stopped, or just starting.
_CHANNEL_RETRY_S: Final = 0.05
# The admission lock that somebody holds is tried again after this: its holder is stopped, or just admitted.
_RECOVERY_RETRY_S: Final = 0.05

logger = logging.getLogger("slabpress")


class Supervisor:
    """All children of one set of processes.

    Arenas come and go in the callers' threads, deaths and restarts are the background thread's: ``_lock`` is held
    for both, so that a child that is just being started is given each arena exactly once.

    Args:
        control: the control block.
        roles: the children to run.
        recover: called with a dead child's slot before another takes its place; False: it could not be done now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        control: Control,
        roles: list[Role],
        recover: Callable[[int], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._recover = recover
        self._clock = clock
        self._lock = threading.RLock()
        self._arenas: dict[int, ArenaGrant] = {}
        self._parent = pidfd_of_self()
        self.children = [ChildProcess(role) for role in roles]

    def add_arena(self, arena: ArenaGrant) -> None:
        """Have the children serve one arena more, those to be started as well."""
        with self._lock:
            self._arenas[arena.number] = arena
            self._say(encode_change(arena.number, arena.settings), arena.descriptor)

    def remove_arena(self, number: int) -> None:
        """Have the children let an arena go."""
        with self._lock:
            grant = self._arenas.pop(number)
            for child in self.children:  # its descriptor is about to be closed
                unsent = [entry for entry in child.outbox if entry[1] != grant.descriptor]
                child.outbox = deque(unsent)
            self._say(encode_change(number, None), -1)

    def has_let_go(self, slot: int, arenas: int) -> bool:
        """Whether the child of a slot has heard everything, and has no more than so many arenas mapped."""
        child = next((child for child in self.children if child.role.slot == slot), None)
        if child is None or child.process is None:
            return True
        heard = not child.outbox and self._control.heard(slot) >= child.told
        return heard and self._control.mapped(slot) <= arenas

    def _say(self, line: bytes, descriptor: int) -> None:
        for child in self.children:
            if child.channel is not None:
                child.outbox.append((line, descriptor))
        self._tell()

    def _tell(self) -> None:
        told = [child.role.slot for child in self.children if child.outbox and child.tell()]
        if told:
            self._control.count_change()
        for slot in told:
            self._control.wake(slot)
        if any(child.outbox for child in self.children):
            self._control.wake(COORDINATOR)  # whose thread tries again

    def start(self) -> None:
        """Start every child and wait until all of them work.

        Raises:
            ProcessError: one did not start; its last words are in the message. None is left running.
        """
        try:
            with self._lock:
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
        self._control.set_heard(slot, 0, 0)
        self._control.set_state(slot, PROCESS_STARTING)
        child.started_at = self._clock()
        child.start(self._control, self._parent, list(self._arenas.values()))

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

    def processes(self) -> list[tuple[str, int]]:
        """The children's names and process ids."""
        pairs = [(child.role.name, child.process) for child in self.children]  # one may be buried meanwhile
        return [(name, process.pid) for name, process in pairs if process is not None]

    @property
    def watched(self) -> list[int]:
        """Descriptors that become readable when a child dies or says something."""
        pairs = ((child.pidfd, child.errors_fd) for child in self.children)
        return [descriptor for pair in pairs for descriptor in pair if descriptor >= 0]

    def next_time(self) -> float | None:
        """When a dead child is due to be replaced, or a full channel to be tried again."""
        times = [child.restart_at for child in self.children if child.restart_at is not None]
        if any(child.outbox for child in self.children):
            times.append(self._clock() + _CHANNEL_RETRY_S)
        if any(child.restart_after_s is not None for child in self.children):
            times.append(self._clock() + _RECOVERY_RETRY_S)
        return min(times, default=None)

    def check(self) -> None:
        """Look after the children: recover from deaths, and replace who is due.

        Raises:
            ProcessError: one keeps dying before it works.
        """
        with self._lock:
            for child in self.children:
                if child.process is not None:
                    child.read_errors()
                    if child.has_ended():
                        self._bury(child)
                if child.restart_after_s is not None and self._recover(child.role.slot):
                    self._replace(child, child.restart_after_s)
                if child.restart_at is not None and self._clock() >= child.restart_at:
                    self._restart(child)
            self._tell()

    def _bury(self, child: ChildProcess) -> None:
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
        logger.warning("%s: starting another", text)
        self._control.get_up(slot)
        pause_s = _BACKOFF_S * 2**child.quick_deaths if child.quick_deaths > 1 else 0.0
        child.restart_after_s = min(_BACKOFF_MAX_S, pause_s)

    def _replace(self, child: ChildProcess, pause_s: float) -> None:
        """What a dead child owned is recovered: others may go on, and a new one comes."""
        if child.role.slot != NETWORK:
            # What it published last may have rung for nobody, and what it woke up for is still to be done.
            self._control.wake(NETWORK)
            self._control.wake_one_worker()
        child.restart_after_s = None
        child.restart_at = self._clock() + pause_s

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
