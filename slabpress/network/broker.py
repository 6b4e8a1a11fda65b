"""One broker: the way to its connection, the connection, and what happens when it is lost.

    idle -> resolving -> connecting -> negotiating -> ready -> idle
Each address of the broker's name is tried in turn; when none answers, the next try waits for the backoff.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Final, NamedTuple, Protocol

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.connection import Answer, Connection, InFlight, NegotiationError, State
from slabpress.network.poller import READ, WRITE, Poller
from slabpress.network.resolver import Resolved, Resolver
from slabpress.network.settings import NetworkSettings
from slabpress.network.transport import BUFFERS_MAX, SEND_BYTES, Endpoint, TcpTransport
from slabpress.network.wire import UnreadableError, WireError

# An enum's members are found anew each time.
_CONNECTING: Final = State.CONNECTING
_READY: Final = State.READY


class Owner(Protocol):
    """Who is told what happens on a broker's connection."""

    def became_ready(self, broker: Broker) -> None:
        """The handshake has ended; requests may be sent."""

    def answered(self, broker: Broker, answer: Answer, now: int) -> None:
        """A response came. May raise WireError: then the connection is closed and the request is lost."""

    def handed_over(self, request: InFlight, now: int) -> None:
        """All bytes of a request that has no response are in the kernel."""

    def lost(self, broker: Broker, requests: list[InFlight], now: int) -> None:
        """The connection was closed; these requests will never be answered."""


class Tools(NamedTuple):
    """What all brokers share."""

    settings: NetworkSettings
    poller: Poller
    resolver: Resolver
    reconnect_backoff: Backoff
    receive_buffer: bytearray
    owner: Owner


def error_words(error: OSError) -> str:
    """An operating system error in the words that reports use."""
    words = os.strerror(error.errno) if error.errno else str(error)
    return words[:1].lower() + words[1:]


class Broker:
    """A broker, or a bootstrap server (negative node id), and at most one connection to it.

    Attributes:
        node, host, port: who and where.
        connection: None while idle or resolving.
        failures: failed connections in a row.
        retry_at_ns: no connection is tried before.
        muted_until_ns: nothing is sent before (KIP-219).
        last_error: why there is no connection, in words.
        retired: the cluster does not name it any more.
        established: how many connections became ready.
        asked_at_ns: when it was last asked for metadata or a producer id.
    """

    def __init__(self, node: int, host: str, port: int, tools: Tools) -> None:
        self.node = node
        self.host = host
        self.port = port
        self.connection: Connection | None = None
        self.failures = 0
        self.retry_at_ns = 0
        self.muted_until_ns = 0
        self.last_error = ""
        self.retired = False
        self.established = 0
        self.asked_at_ns = 0
        self._tools = tools
        self._receive_buffer = memoryview(tools.receive_buffer)
        self._transport: TcpTransport | None = None
        self._endpoints: deque[Endpoint] = deque()
        self._endpoint: Endpoint | None = None
        self._lookups = 0
        self._resolving = False
        self._plain = False
        self._flexible = True
        self._setup_deadline_ns = 0
        self._mask = 0
        self._in_flight_most = tools.settings.max_in_flight_requests_per_connection

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ready(self) -> bool:
        """Whether requests may be sent."""
        return self.connection is not None and self.connection.state is _READY

    @property
    def is_setting_up(self) -> bool:
        """Whether a connection is on its way."""
        return self._resolving or (self.connection is not None and not self.is_ready)

    def can_connect(self, now: int) -> bool:
        """Whether a connection may be tried."""
        return self.connection is None and not self._resolving and now >= self.retry_at_ns

    def can_send(self, now: int) -> bool:
        """Whether a request may be sent now: the last one is in the kernel, and there is room for one more."""
        connection = self.connection
        return (
            connection is not None
            and connection.state is _READY
            and not connection.has_outgoing
            and connection.in_flight < self._in_flight_most
            and now >= self.muted_until_ns
        )

    def mute(self, throttle_ms: int, now: int) -> None:
        """Send nothing for so long."""
        self.muted_until_ns = max(self.muted_until_ns, now + throttle_ms * NS_PER_MS)

    def connect(self, now: int) -> None:
        """Begin to connect; what becomes of it is told to the owner."""
        self._lookups += 1
        self._start_setup_clock(now)
        self._endpoints = deque(self._tools.resolver.start((self, self._lookups), self.host, self.port))
        if self._endpoints:
            self._try_next_address(now)
        else:
            self._resolving = True

    def resolved(self, result: Resolved, now: int) -> None:
        """The name lookup has ended."""
        if not self._resolving or result.asker != (self, self._lookups):
            return
        self._resolving = False
        self._endpoints = deque(result.endpoints)
        self.last_error = result.error
        self._start_setup_clock(now)
        self._try_next_address(now)

    def _start_setup_clock(self, now: int) -> None:
        timeout_ms = self._tools.settings.socket_connection_setup_timeout_ms
        self._setup_deadline_ns = now + timeout_ms * NS_PER_MS

    def _try_next_address(self, now: int) -> None:
        settings = self._tools.settings
        while self._endpoints:
            self._endpoint = self._endpoints.popleft()
            try:
                self._transport = TcpTransport(
                    self._endpoint, settings.send_buffer_bytes, settings.receive_buffer_bytes
                )
            except OSError as error:
                self.last_error = error_words(error)
                continue
            except OverflowError:
                self.last_error = f"port {self.port} does not exist"
                continue
            self.connection = Connection(
                settings.client_id, settings.request_timeout_ms * NS_PER_MS, plain=self._plain, flexible=self._flexible
            )
            self._start_setup_clock(now)
            self._mask = WRITE
            self._tools.poller.register(self._transport, self._mask, self)
            return
        self._back_off(now)
        self._tools.owner.lost(self, [], now)

    def _back_off(self, now: int) -> None:
        self.failures += 1
        self.retry_at_ns = now + self._tools.reconnect_backoff.delay_ns(self.failures)

    def handle(self, mask: int, now: int) -> None:
        """The socket can be read or written."""
        connection, transport = self.connection, self._transport
        if connection is None or transport is None:
            return
        try:
            if connection.state is _CONNECTING:
                transport.finish_connect()
                connection.connected(now)
                self.flush(now)
            elif mask & READ:
                self._receive(connection, transport, now)
            if mask & WRITE and connection is self.connection:
                self.flush(now)
        # Names of their own: mypyc gives a name one type.
        except NegotiationError as refusal:
            self._close(str(refusal), now, ask_plain=True)
        except WireError as nonsense:
            self._distrust(nonsense)
            self._close(str(nonsense), now)
        except OSError as error:
            self._close(error_words(error), now, ask_plain=connection.state is State.NEGOTIATING)

    def _receive(self, connection: Connection, transport: TcpTransport, now: int) -> None:
        buffer = self._receive_buffer
        while connection is self.connection:
            count = transport.receive(buffer)
            if count is None:
                return
            if count == 0:
                self._ended(connection, now)
                return
            was_ready = connection.state is _READY
            for answer in connection.received(buffer[:count], now):
                try:
                    self._tools.owner.answered(self, answer, now)
                except WireError as error:
                    self._distrust(error)
                    self._close(str(error), now, also=[answer.request])
                    return
            if connection.state is _READY and not was_ready:
                self.failures = 0
                self.last_error = ""
                self.established += 1
                self._tools.owner.became_ready(self)
            if connection.has_outgoing:
                self.flush(now)
            if count < len(buffer):
                return

    def _distrust(self, error: WireError) -> None:
        """What kio cannot read may parse in an older version; without this it would come for ever."""
        self._flexible = self._flexible and not isinstance(error, UnreadableError)

    def _ended(self, connection: Connection, now: int) -> None:
        """The broker closed the connection: quietly while it was idle, which brokers do after a while."""
        if connection.state is _READY and connection.in_flight == 0 and not connection.has_outgoing:
            self.close(now)
        else:
            negotiating = connection.state is State.NEGOTIATING
            words = "closed the connection" + (" in the handshake" if negotiating else "")
            self._close(words, now, ask_plain=negotiating)

    def flush(self, now: int) -> None:
        """Hand as much as possible to the kernel."""
        connection, transport = self.connection, self._transport
        if connection is None or transport is None or connection.state is _CONNECTING:
            return
        try:
            while connection.has_outgoing and self._hand_over(connection, transport, now):
                pass
        except OSError as error:
            self._close(error_words(error), now)
            return
        mask = READ | (WRITE if connection.has_outgoing else 0)
        if mask != self._mask:
            self._mask = mask
            self._tools.poller.modify(transport, mask, self)

    def _hand_over(self, connection: Connection, transport: TcpTransport, now: int) -> bool:
        """Offer the kernel what is next; whether it may take more."""
        buffers = connection.buffers(BUFFERS_MAX, SEND_BYTES)
        count = transport.send(buffers)
        for request in connection.sent(count, now):
            self._tools.owner.handed_over(request, now)
        return connection.has_outgoing and count == sum(map(len, buffers))

    def deadline_ns(self) -> int | None:
        """When ``check`` has something to do; None if nothing is timed."""
        if self._resolving:
            return self._setup_deadline_ns
        if self.connection is None:
            return None
        if not self.is_ready:
            return self._setup_deadline_ns
        return self.connection.deadline_ns or self._idle_deadline_ns(self.connection)

    def _idle_deadline_ns(self, connection: Connection) -> int | None:
        if self._tools.settings.connections_max_idle_ms < 0:
            return None
        return connection.last_used_ns + self._tools.settings.connections_max_idle_ms * NS_PER_MS

    def check(self, now: int) -> None:
        """Let the time pass: setting up, requests and idleness have their deadlines."""
        deadline = self.deadline_ns()
        if deadline is None or now < deadline:
            return
        settings = self._tools.settings
        if self._resolving:
            self._resolving = False
            self.last_error = f"name lookup took over {settings.socket_connection_setup_timeout_ms} ms"
            self._back_off(now)
            self._tools.owner.lost(self, [], now)
        elif not self.is_ready:
            self._close(f"no answer within {settings.socket_connection_setup_timeout_ms} ms", now)
        elif self.connection is not None and self.connection.deadline_ns is not None:
            self._close(f"no response within {settings.request_timeout_ms} ms", now)
        else:
            self.close(now)

    def close(self, now: int) -> None:
        """Close the connection without calling it a failure, but do not hurry to open another."""
        lost = self._shut()
        self.retry_at_ns = now + self._tools.reconnect_backoff.delay_ns(1)
        self._tools.owner.lost(self, lost, now)

    def _close(self, why: str, now: int, *, ask_plain: bool = False, also: list[InFlight] | None = None) -> None:
        """The connection failed. The socket is closed before anything is said of its requests (law 7)."""
        was_connecting = self.connection is not None and self.connection.state is _CONNECTING
        lost = (also or []) + self._shut()
        self.last_error = why
        if ask_plain and not self._plain and self._endpoint is not None:
            # ApiVersions v3 confused it: the same address again, asked with version 0.
            self._plain = True
            self._endpoints.appendleft(self._endpoint)
            self._try_next_address(now)
            return
        if was_connecting and self._endpoints:
            self._try_next_address(now)
            return
        if ask_plain:
            self._plain = False
        self._back_off(now)
        self._tools.owner.lost(self, lost, now)

    def _shut(self) -> list[InFlight]:
        self._resolving = False
        connection, transport = self.connection, self._transport
        self.connection = self._transport = None
        if transport is not None:
            self._tools.poller.unregister(transport)
            transport.close()
        return connection.close() if connection is not None else []
