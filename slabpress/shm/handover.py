"""What a child is given at birth: inherited descriptors, and settings through a pipe.

Children start as ``python -P -m slabpress.workers SETUP_FD`` (law 11): never through the user's ``__main__``,
nothing secret in argv or the environment. The setup pipe carries one JSON object that names the inherited
descriptors and holds the settings.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from typing import Any, NamedTuple

from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.shm.doorbell import Doorbell
from slabpress.shm.states import PROCESS_RUNNING


class ArenaGrant(NamedTuple):
    """An arena that a child serves: its descriptor, and its producer's settings."""

    descriptor: int
    settings: dict[str, Any]


class Grant(NamedTuple):
    """Everything a child is given. ``parent`` is a pidfd of the coordinator, or -1 where there are none."""

    slot: int
    control: int
    bells: list[tuple[int, int]]
    parent: int
    settings: dict[str, Any]
    arenas: list[ArenaGrant]

    def inherited(self) -> set[int]:
        """Every descriptor that the child must inherit."""
        descriptors = {self.control, *(arena.descriptor for arena in self.arenas)}
        descriptors.update(end for bell in self.bells for end in bell)
        if self.parent >= 0:
            descriptors.add(self.parent)
        return descriptors

    def encode(self) -> bytes:
        """The JSON that ``receive`` reads."""
        return json.dumps(self).encode()


def decode_grant(data: bytes) -> Grant:
    """The inverse of ``Grant.encode``."""
    slot, control, bells, parent, settings, arenas = json.loads(data)
    return Grant(
        slot,
        control,
        [(read, write) for read, write in bells],
        parent,
        settings,
        [ArenaGrant(descriptor, own) for descriptor, own in arenas],
    )


class Child:
    """A child's side of the handover: attached arenas, the control block, and word of the parent's end.

    Attributes:
        slot: this process's slot in the control block.
        control: the control block.
        arenas: (arena, its producer's settings), one entry until several producers share the processes.
        settings: the settings of this role.
    """

    def __init__(self, grant: Grant) -> None:
        self.slot = grant.slot
        self.control = Control(grant.control, [Doorbell(read, write) for read, write in grant.bells])
        self.arenas = [(Arena.attach(arena.descriptor), arena.settings) for arena in grant.arenas]
        self.settings = grant.settings
        self.parent = grant.parent
        self._parent_id = os.getppid()

    @classmethod
    def receive(cls, argv: list[str]) -> Child:
        """Read the setup pipe named by ``argv[1]`` and attach.

        The children end when the coordinator says so or is gone, and on nothing else: they are in a session of
        their own, and a SIGINT, SIGTERM or SIGHUP that reaches them all the same (a service manager signals whole
        groups) is ignored, or they would be gone before the job has flushed.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        descriptor = int(argv[1])
        with os.fdopen(descriptor, "rb") as pipe:
            grant = decode_grant(pipe.read())
        return cls(grant)

    def running(self) -> None:
        """Tell the coordinator that this process works."""
        self.control.set_state(self.slot, PROCESS_RUNNING)
        self.control.bells[0].ring()

    @property
    def watched(self) -> list[int]:
        """Descriptors to poll beside the doorbell: readable when the coordinator died."""
        return [self.parent] if self.parent >= 0 else []

    @property
    def idle_timeout_s(self) -> float | None:
        """The longest sleep: for ever where a pidfd tells of the parent's end, else a look every second."""
        return None if self.parent >= 0 else 1.0

    def parent_is_gone(self) -> bool:
        """Whether the coordinator died without saying stop."""
        if self.parent >= 0:
            poller = select.poll()
            poller.register(self.parent, select.POLLIN)
            return bool(poller.poll(0))
        return os.getppid() != self._parent_id

    def must_end(self) -> bool:
        """Whether this process should end now."""
        return self.control.stopping or self.parent_is_gone()


def open_pidfd(pid: int) -> int:
    """A pidfd, or -1 where there are none (another system, or a sandbox that forbids them)."""
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return -1
        raise


def pidfd_of_self() -> int:
    """A pidfd of this process for its children to watch; -1 where there are none.

    A pipe's end-of-file would not do: a child that the user forks inherits the pipe and hides the EOF.
    """
    return open_pidfd(os.getpid())
