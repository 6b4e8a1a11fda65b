"""Names to addresses without blocking the event loop: getaddrinfo in a short-lived thread.

There is at most one thread for each broker that is being connected to. Numeric addresses need none.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Hashable
from typing import NamedTuple

from slabpress.network.transport import Endpoint
from slabpress.shm.doorbell import Doorbell


class Resolved(NamedTuple):
    """What became of a lookup: addresses, or why there are none."""

    asker: Hashable
    endpoints: list[Endpoint]
    error: str


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[ipv6]:port`` as (host, port).

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r} is not host:port; an IPv6 address goes in brackets")
    if not colon or not host or not port.isdecimal():
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def _look_up(host: str, port: int, flags: int) -> list[Endpoint]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(Endpoint(family, address) for family, _, _, _, address in found))


class Resolver:
    """Looks names up in the background.

    Args:
        bell: rung when a lookup has ended; then ``results`` has it.

    Attributes:
        under_way: lookups whose result was not taken yet.
    """

    def __init__(self, bell: Doorbell) -> None:
        self._bell = bell
        self._results: queue.SimpleQueue[Resolved] = queue.SimpleQueue()
        self.under_way = 0

    def start(self, asker: Hashable, host: str, port: int) -> list[Endpoint]:
        """The addresses if the host is numeric; else an empty list, and a result with ``asker`` comes later."""
        try:
            return _look_up(host, port, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
        except (OSError, UnicodeError):
            thread = threading.Thread(target=self._run, args=(asker, host, port), daemon=True)
            thread.start()
            self.under_way += 1
            return []

    def _run(self, asker: Hashable, host: str, port: int) -> None:
        try:
            result = Resolved(asker, _look_up(host, port, 0), "")
        except (OSError, UnicodeError) as error:
            # UnicodeError: a name that IDNA cannot encode, such as one with an empty label.
            result = Resolved(asker, [], f"name lookup failed: {getattr(error, 'strerror', None) or error}")
        self._results.put(result)
        self._bell.ring()

    def results(self) -> list[Resolved]:
        """The lookups that have ended since the last call."""
        found = []
        while not self._results.empty():  # nobody else takes any
            found.append(self._results.get_nowait())
        self.under_way -= len(found)
        return found
