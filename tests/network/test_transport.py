"""The socket under a connection."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from slabpress.network.transport import BUFFERS_MAX, Endpoint, TcpTransport


@pytest.fixture
def pair() -> Iterator[tuple[TcpTransport, socket.socket]]:
    """A connected transport and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = TcpTransport(Endpoint(socket.AF_INET, listener.getsockname()), 16_384)
        peer, _ = listener.accept()
        transport.finish_connect()
        with peer:
            yield transport, peer
        transport.close()


def test_a_full_kernel_takes_nothing_and_is_no_error(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, peer = pair
    chunk = memoryview(bytes(range(256)) * 256)
    sent = 0
    while count := transport.send([chunk[sent % 256 :], chunk]):
        sent += count
    peer.settimeout(10)
    received = b""
    while len(received) < sent:
        received += peer.recv(1 << 20)
    assert received[:1000] == bytes(chunk[:1000])
    assert len(received) == sent
    assert transport.send([chunk]) > 0


def test_as_many_buffers_as_it_says_go_out_at_once(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, peer = pair
    assert transport.send([memoryview(b"x")] * BUFFERS_MAX) == BUFFERS_MAX
    peer.settimeout(10)
    assert peer.recv(BUFFERS_MAX, socket.MSG_WAITALL) == b"x" * BUFFERS_MAX


def test_receive_tells_nothing_from_the_end(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, peer = pair
    buffer = memoryview(bytearray(4))
    found = [transport.receive(buffer)]
    peer.sendall(b"abcdef")
    select.select([transport], [], [], 10)
    found += [transport.receive(buffer), transport.receive(buffer)]
    peer.close()
    select.select([transport], [], [], 10)
    found.append(transport.receive(buffer))
    assert found == [None, 4, 2, 0]


def test_a_refused_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    transport = TcpTransport(Endpoint(socket.AF_INET, address), -1)
    select.select([], [transport], [], 10)
    with pytest.raises(ConnectionRefusedError):
        transport.finish_connect()
    transport.close()
