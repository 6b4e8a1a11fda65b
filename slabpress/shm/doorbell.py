"""Wake-ups between processes. A doorbell is a hint: whoever wakes looks at the state words for the truth.

A process that runs out of work says "I sleep" in the control block, looks once more, and only then waits; a
process that made work looks for sleepers after publishing it. With a full fence between the two steps on both
sides, at least one of them sees the other (Dekker). A ring that gets lost with a dead process costs its
waiter's deadline, never correctness (law 3).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from typing import Final

EVENT_BYTES: Final = 8


class Doorbell:
    """A pollable event: an eventfd where there is one, else a pipe. Ringing it twice wakes once.

    Args:
        read_descriptor: polled and drained by the one who sleeps.
        write_descriptor: the same descriptor for an eventfd.
    """

    def __init__(self, read_descriptor: int, write_descriptor: int) -> None:
        self.read_descriptor = read_descriptor
        self.write_descriptor = write_descriptor

    @classmethod
    def create(cls) -> Doorbell:
        """A new doorbell, close-on-exec and non-blocking."""
        if sys.platform.startswith("linux"):
            descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return cls(descriptor, descriptor)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        return cls(reader, writer)

    @property
    def descriptors(self) -> tuple[int, int]:
        """(read, write), for a child to inherit."""
        return self.read_descriptor, self.write_descriptor

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self.read_descriptor

    def ring(self) -> None:
        """Wake whoever waits; a bell that is full already rings loud enough."""
        try:  # noqa: SIM105 - contextlib.suppress is three frames, and workers ring for every other batch
            os.write(self.write_descriptor, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        except BlockingIOError:
            pass

    def drain(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.read_descriptor, 4096)) > EVENT_BYTES:
                pass

    def wait(self, timeout_s: float | None, also: Sequence[int] = ()) -> list[int]:
        """Sleep until rung, until one of ``also`` is readable, or until the timeout; drains the bell.

        Returns:
            Those of ``also`` that are readable.
        """
        poller = select.poll()
        poller.register(self.read_descriptor, select.POLLIN)
        for descriptor in also:
            poller.register(descriptor, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        readable = [descriptor for descriptor, _ in ready]
        if self.read_descriptor in readable:
            readable.remove(self.read_descriptor)
            self.drain()
        return readable

    def close(self) -> None:
        """Close both ends."""
        for descriptor in {self.read_descriptor, self.write_descriptor}:
            os.close(descriptor)
