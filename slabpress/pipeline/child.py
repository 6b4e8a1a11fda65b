"""One child process: starting it with its grant, talking to it, hearing its last words."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections import deque
from typing import Any, Final, NamedTuple

from slabpress.shm.control import Control
from slabpress.shm.handover import ArenaGrant, Grant, open_pidfd

_ERROR_TAIL_BYTES: Final = 4096
# glibc raises these by itself with the largest block that was ever freed, and keeps blocks of that size in the heap
# then: a codec's workspace would stay after its last producer. See mallopt(3); the user's own environment goes first.
_ENVIRONMENT: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
# What passes: too many descriptors on their way, no descriptor, no memory for now.
_SHORTAGES: Final = frozenset({errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Role(NamedTuple):
    """What a child is: its module, its place, and its settings."""

    name: str
    module: str
    slot: int
    settings: dict[str, Any]


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
        self.restart_after_s: float | None = None  # once what it owned is recovered
        self.channel: socket.socket | None = None
        # What the channel has not taken yet: lines, each with the descriptor of the arena that comes or -1.
        self.outbox: deque[tuple[bytes, int]] = deque()
        self.told = 0  # lines that this process was told, ever

    def start(self, control: Control, parent: int, arenas: list[ArenaGrant]) -> None:
        """Start the process with its grant."""
        role = self.role
        self.outbox.clear()  # it is given the arenas as they are now
        self.told = 0
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)  # noqa: FBT003 - its only argument is positional
        grant = Grant(role.slot, control.descriptor, [b.descriptors for b in control.bells], parent, theirs.fileno(),
                      role.settings, arenas)  # fmt: skip
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
                env=_ENVIRONMENT | os.environ,
            )
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            os.close(setup_read)
            os.close(errors_write)
            # A grant is a few hundred bytes an arena. A pipe holds 64 KB: more waits until the child reads it.
            with contextlib.suppress(BrokenPipeError), os.fdopen(setup_write, "wb") as pipe:
                pipe.write(grant.encode())
        try:
            self.pidfd = open_pidfd(self.process.pid)
        except BaseException:
            self.process.kill()  # nobody would hear of its death
            self.process.wait()
            raise

    def tell(self) -> bool:
        """Hand the channel as much of the outbox as it takes; whether that was anything."""
        told = False
        while self.outbox and self.channel is not None:
            line, descriptor = self.outbox[0]
            try:
                socket.send_fds(self.channel, [line], [descriptor] if descriptor >= 0 else [])
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                self.outbox.clear()  # it has died; the next one is given the arenas at birth
                break
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                break
            self.outbox.popleft()
            self.told += 1
            told = True
        return told

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
        self.outbox.clear()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
