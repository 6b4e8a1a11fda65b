"""A non-blocking TCP socket: connect, gathered sends, receives into a buffer that all sockets share.

The only module that touches sockets. A transport for TLS has the same methods.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

BUFFERS_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))
# Enough for a whole request: a call of its own for each half megabyte took a third of the throughput away.
SEND_BYTES: Final = 2 * 1024 * 1024
RECEIVE_BYTES: Final = 64 * 1024


class Endpoint(NamedTuple):
    """A resolved address, as getaddrinfo gives it."""

    family: int
    address: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class TcpTransport:
    """One connection on plain TCP.

    Raises OSError wherever the system does; the connection is over then.

    Args:
        endpoint: where to connect to; the attempt begins at once.
        send_buffer_bytes, receive_buffer_bytes: the socket's buffers, -1 to leave one to the system.
    """

    def __init__(self, endpoint: Endpoint, send_buffer_bytes: int, receive_buffer_bytes: int = -1) -> None:
        self._socket = socket.socket(endpoint.family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(0)
            # A request is sent whole, so there is nothing for Nagle's algorithm to wait for.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if send_buffer_bytes >= 0:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            if receive_buffer_bytes >= 0:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            with contextlib.suppress(BlockingIOError):
                self._socket.connect(endpoint.address)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    def finish_connect(self) -> None:
        """Look how the connecting ended, after the socket became writable."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if self._socket.getsockname() == self._socket.getpeername():
            # Linux connects a local port without a listener to itself when it happens to choose that port.
            raise ConnectionRefusedError("connected to itself")

    def send(self, buffers: Sequence[memoryview]) -> int:
        """Hand over as many bytes as the kernel takes, maybe 0."""
        try:
            return self._socket.sendmsg(buffers)
        except BlockingIOError:
            return 0

    def receive(self, buffer: memoryview) -> int | None:
        """Fill the buffer with what came in; 0 at the end of the stream, None when nothing is there."""
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
