"""What a child is given: at birth through a pipe, and later, arena by arena, through a channel.

Children start as ``python -P -m slabpress.workers SETUP_FD`` (law 11): never through the user's ``__main__``,
nothing secret in argv or the environment. The setup pipe carries one JSON object that names the inherited
descriptors and holds the settings. The channel is a Unix socket on which the coordinator adds arenas, each with its
descriptor (SCM_RIGHTS), and takes them away; one JSON object a line.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import time
from collections import deque
from typing import Any, Final, NamedTuple

from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, Control
from slabpress.shm.doorbell import Doorbell
from slabpress.shm.states import PROCESS_RUNNING, PROCESS_STARTING

# More descriptors than the kernel passes in one message (SCM_MAX_FD is 253).
# A child that was started works after this long, or never.
START_TIMEOUT_S: Final = 30.0
_DESCRIPTORS_AT_ONCE: Final = 256
_CHANNEL_READ_BYTES: Final = 64 * 1024


class ArenaGrant(NamedTuple):
    """An arena that a child serves: its number in this set of processes, its descriptor, its producer's settings."""

    number: int
    descriptor: int
    settings: dict[str, Any]


class Grant(NamedTuple):
    """Everything a child is given at birth.

    Attributes:
        slot: its place in the control block.
        control: the control block's descriptor.
        bells: (read, write) descriptors of everybody's doorbells.
        parent: a pidfd of the coordinator, or -1 where there are none.
        channel: the child's end of its channel, or -1 for one that serves what it is given at birth.
        settings: of its role.
        arenas: those there are.
    """

    slot: int
    control: int
    bells: list[tuple[int, int]]
    parent: int
    channel: int
    settings: dict[str, Any]
    arenas: list[ArenaGrant]

    def inherited(self) -> set[int]:
        """Every descriptor that the child must inherit."""
        descriptors = {self.control, *(arena.descriptor for arena in self.arenas)}
        descriptors.update(end for bell in self.bells for end in bell)
        descriptors.update(end for end in (self.parent, self.channel) if end >= 0)
        return descriptors

    def encode(self) -> bytes:
        """The JSON that ``receive`` reads."""
        return json.dumps(self).encode()


def decode_grant(data: bytes) -> Grant:
    """The inverse of ``Grant.encode``."""
    slot, control, bells, parent, channel, settings, arenas = json.loads(data)
    return Grant(
        slot,
        control,
        [(read, write) for read, write in bells],
        parent,
        channel,
        settings,
        [ArenaGrant(*arena) for arena in arenas],
    )


class Change(NamedTuple):
    """One change to the set of arenas: ``arena`` is None where ``number`` is to be let go."""

    number: int
    arena: Arena | None
    settings: dict[str, Any]


def encode_change(number: int, settings: dict[str, Any] | None) -> bytes:
    """One line of a channel: an arena that comes with its producer's settings, or goes with None."""
    return json.dumps([number, settings]).encode() + b"\n"


class Channel:
    """A child's end of its channel."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)  # noqa: FBT003 - its only argument is positional
        self._descriptors: deque[int] = deque()
        self._begun = b""

    def take(self) -> list[Change]:
        """The changes that have come in; a new arena is attached."""
        lines = self._read().split(b"\n")
        self._begun = lines.pop()
        return [self._change(line) for line in lines]

    def _read(self) -> bytes:
        # A descriptor comes with its line's first byte, so it is here when the line's end is.
        data = self._begun
        while True:
            try:
                more, descriptors, _, _ = socket.recv_fds(self._socket, _CHANNEL_READ_BYTES, _DESCRIPTORS_AT_ONCE)
            except BlockingIOError:
                return data
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only argument is positional
            self._descriptors.extend(descriptors)
            data += more
            if not more:
                return data  # the coordinator is gone, which its pidfd tells as well

    def _change(self, line: bytes) -> Change:
        number, settings = json.loads(line)
        if settings is None:
            return Change(number, None, {})
        if not self._descriptors:
            raise OSError(errno.EMFILE, f"arena {number} came without its descriptor: too many open files")
        return Change(number, Arena.attach(self._descriptors.popleft()), settings)


class Child:
    """A child's side of the handover: attached arenas, the control block, and word of the parent's end.

    Attributes:
        slot: this process's slot in the control block.
        control: the control block.
        settings: the settings of this role.
        orphaned: the coordinator is gone, and this process goes on (network/drain.py).
    """

    def __init__(self, grant: Grant) -> None:
        self.slot = grant.slot
        self.control = Control(grant.control, [Doorbell(read, write) for read, write in grant.bells])
        self.settings = grant.settings
        self.parent = grant.parent
        self._parent_id = os.getppid()
        self.orphaned = False
        self._orphaned_at = 0.0
        self._channel = Channel(grant.channel) if grant.channel >= 0 else None
        self._heard = 0
        self._mapped = 0
        self._changes_seen = -1  # so that what was said while this process started is read
        self._given = [Change(number, Arena.attach(file), own) for number, file, own in grant.arenas]

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

    def changes(self) -> list[Change]:
        """What has changed in the set of arenas since the last call; at first, those given at birth."""
        given, self._given = self._given, []
        self._mapped += len(given)
        seen = self.control.changes()
        # Nothing but a word is looked at while nothing changes.
        if seen != self._changes_seen:
            self._changes_seen = seen
            said = self._channel.take() if self._channel is not None else []
            self._mapped += sum(change.arena is not None for change in said)
            self._heard += len(said)
            given += said
        for change in given:
            if change.arena is not None:
                change.arena.set_attached(self.slot, attached=True)
        if given:
            self._tell()
        return given

    def _tell(self) -> None:
        self.control.set_heard(self.slot, self._heard, self._mapped)
        self.control.wake(COORDINATOR)

    def has_changes(self) -> bool:
        """Whether ``changes`` may have something to give."""
        return bool(self._given) or self.control.changes() != self._changes_seen

    def let_go(self, arena: Arena) -> None:
        """Unmap an arena, and say so; nothing may use it, or a view of it, any more."""
        arena.set_attached(self.slot, attached=False)
        arena.close()
        self._mapped -= 1
        self._tell()

    def running(self) -> None:
        """Tell the coordinator that this process works."""
        self.control.set_state(self.slot, PROCESS_RUNNING)
        self.control.bells[COORDINATOR].ring()

    @property
    def watched(self) -> list[int]:
        """Descriptors to poll beside the doorbell: readable when the coordinator died."""
        return [self.parent] if self.parent >= 0 and not self.orphaned else []

    @property
    def idle_timeout_s(self) -> float | None:
        """The longest sleep: for ever where a pidfd will tell of the parent's end, else a look every second."""
        return None if self.parent >= 0 and not self.orphaned else 1.0

    def parent_is_gone(self) -> bool:
        """Whether the coordinator died without saying stop."""
        if self.parent >= 0:
            return _has_ended(self.parent)
        return os.getppid() != self._parent_id

    def must_end(self) -> bool:
        """Whether the coordinator said stop, or is gone."""
        return self.control.stopping or self.parent_is_gone()

    def is_alive(self, slot: int) -> bool:
        """Whether the process of a slot still runs, or is just being started by a job that died over it.

        The line of one that is starting still names the job.
        """
        if self.control.state(slot) == PROCESS_STARTING:
            return not self.orphaned or time.monotonic() - self._orphaned_at < START_TIMEOUT_S
        return is_alive(self.control.pid(slot))

    def become_orphan(self) -> None:
        """The coordinator is gone, and this process goes on for a while: watch it no more."""
        self.orphaned = True
        self._orphaned_at = time.monotonic()
        self.control.get_up(COORDINATOR)  # nobody is there to be rung


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs.

    One that has ended and was not reaped does not, though a signal finds it: orphans are reaped by the first process of
    their container, which often is a program that reaps nobody.
    """
    if pid <= 0:
        return False
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return False
    if pidfd < 0:
        return _is_known(pid)
    try:
        return not _has_ended(pidfd)
    finally:
        os.close(pidfd)


def _is_known(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


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
