"""One connection without its socket: framing, correlation ids, requests in flight, and the handshake.

The handshake is the table below: a later step (TLS, SASL) is one more state with its place in it.

    CONNECTING   the socket is not connected yet
    NEGOTIATING  ApiVersions was sent
    READY        versions are known; requests may be sent
    CLOSED       nothing more, ever
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

from slabpress._native import correlation_id_of
from slabpress.network.framing import Frames, OversizedError, not_a_response
from slabpress.network.messages import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    common_version,
    decode_api_versions,
    encode_api_versions,
    error_name,
)
from slabpress.network.wire import RESPONSE_MAX_BYTES, Request, WireError

_FIRST_VERSIONS_ASKED: Final = 3
_UNSUPPORTED_VERSION: Final = 35
_CORRELATION_ID_BYTES: Final = 4
_CORRELATION_MASK: Final = 0x7FFF_FFFF
# What a response is called that is too large, and what to do.
_OVERSIZED: Final = {
    METADATA: ("metadata", "ask for fewer topics in one producer or pipeline"),
    PRODUCE: ("a Produce response", "lower max_request_size"),
    API_VERSIONS: ("an ApiVersions response", "this is no Kafka broker"),
}


class State(Enum):
    """Where a connection is in its life."""

    CONNECTING = auto()
    NEGOTIATING = auto()
    READY = auto()
    CLOSED = auto()


_NEGOTIATING: Final = State.NEGOTIATING  # an enum's members are found anew each time

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CONNECTING: frozenset({State.NEGOTIATING, State.CLOSED}),
    State.NEGOTIATING: frozenset({State.READY, State.CLOSED}),
    State.READY: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


class NegotiationError(WireError):
    """The broker's answer to ApiVersions is of no use; a fresh connection may ask with version 0."""


class InFlight:
    """A request that was built and has no answer yet.

    Attributes:
        correlation_id: names it; odd for one that is done when its bytes are sent (acks=0).
        api, version: what it is.
        context: its sender's own.
        deadline_ns: when its response must have come.
        parts: what is not sent yet, so many bytes.
    """

    __slots__ = ("api", "context", "correlation_id", "deadline_ns", "parts", "size", "version")

    def __init__(
        self, correlation_id: int, api: int, version: int, context: object, deadline_ns: int, request: Request
    ) -> None:
        self.correlation_id = correlation_id
        self.api = api
        self.version = version
        self.context = context
        self.deadline_ns = deadline_ns
        self.parts = request.parts
        self.size = request.size


class Answer:
    """A response frame, with what it answers."""

    __slots__ = ("frame", "request")

    def __init__(self, request: InFlight, frame: bytes) -> None:
        self.request = request
        self.frame = frame


class Connection:
    """The protocol state of one connection.

    Args:
        client_id: sent with every request.
        plain: ask for ApiVersions version 0 at once, because version 3 confused this broker before.
        flexible: use versions with tagged fields; not so with a broker that sent one that kio cannot pass over.
        timeout_ns: a request's time until its response.

    Attributes:
        state: where it is in its life.
        versions: the highest common version of each API, once READY; an API without one is absent.
        last_used_ns: when something last went out or came in.
        has_outgoing: bytes wait to be sent.
    """

    def __init__(self, client_id: str, timeout_ns: int, *, plain: bool, flexible: bool = True) -> None:
        self.client_id = client_id
        self.state = State.CONNECTING
        self.versions: dict[int, int] = {}
        self.last_used_ns = 0
        self.has_outgoing = False
        self._timeout_ns = timeout_ns
        self._asked = 0 if plain else _FIRST_VERSIONS_ASKED
        self._flexible = flexible
        self._next_id = 0
        self._in_flight: deque[InFlight] = deque()
        self._outgoing: deque[InFlight] = deque()
        self._frames = Frames()

    def _become(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no transition from {self.state.name} to {state.name}")
        self.state = state

    @property
    def in_flight(self) -> int:
        """How many requests wait for a response."""
        return len(self._in_flight)

    def outgoing(self) -> list[InFlight]:
        """The requests whose bytes are not all sent."""
        return list(self._outgoing)

    @property
    def deadline_ns(self) -> int | None:
        """When the oldest request runs out of time; None without one."""
        return min(
            (requests[0].deadline_ns for requests in (self._outgoing, self._in_flight) if requests), default=None
        )

    def connected(self, now: int) -> None:
        """The socket is connected: the handshake begins."""
        self._become(State.NEGOTIATING)
        self._ask_versions(now)

    def _ask_versions(self, now: int) -> None:
        correlation_id = self.next_id()
        request = encode_api_versions(self._asked, correlation_id, self.client_id)
        self.send(request, correlation_id, API_VERSIONS, self._asked, None, now)

    def next_id(self, *, unanswered: bool = False) -> int:
        """A correlation id for the next request; odd for one that no response is expected to.

        Brokers stay silent on acks=0, but the test brokers answer it: an odd id tells such an answer from one
        to something that was never asked, without a memory of what was asked.
        """
        self._next_id = (self._next_id + 2) & _CORRELATION_MASK
        return self._next_id | int(unanswered)

    def send(self, request: Request, correlation_id: int, api: int, version: int, context: object, now: int) -> None:
        """Queue a request that was encoded with this correlation id."""
        entry = InFlight(correlation_id, api, version, context, now + self._timeout_ns, request)
        if not correlation_id & 1:
            self._in_flight.append(entry)
        self._outgoing.append(entry)
        self.has_outgoing = True

    def buffers(self, limit: int, enough_bytes: int = 1 << 30) -> list[memoryview]:
        """The next bytes to send, at most ``limit`` pieces, and no more once they are enough."""
        first = self._outgoing[0] if len(self._outgoing) == 1 else None
        if first is not None and len(first.parts) <= limit and first.size <= enough_bytes:
            return first.parts
        found: list[memoryview] = []
        size = 0
        for waiting in self._outgoing:
            for part in waiting.parts:
                found.append(part)
                size += len(part)
                if size >= enough_bytes or len(found) == limit:
                    return found
        return found

    def sent(self, count: int, now: int) -> list[InFlight]:
        """Note that so many bytes were handed to the kernel; the unanswered requests that are complete now."""
        self.last_used_ns = now
        complete = []
        while self._outgoing and count >= self._outgoing[0].size:
            first = self._outgoing.popleft()
            count -= first.size
            first.parts = []
            if first.correlation_id & 1:
                complete.append(first)
        if count:
            self._cut(self._outgoing[0], count)
        self.has_outgoing = bool(self._outgoing)
        return complete

    @staticmethod
    def _cut(request: InFlight, count: int) -> None:
        """Take off so many bytes that were sent."""
        request.size -= count
        whole = 0
        while count >= len(request.parts[whole]):
            count -= len(request.parts[whole])
            whole += 1
        request.parts = request.parts[whole:]
        request.parts[0] = request.parts[0][count:]

    def received(self, data: memoryview, now: int) -> Iterator[Answer]:
        """Take what came in; the responses that are complete now, each taken off the requests as it is given.

        Raises:
            WireError: it is not a response to anything that was asked, or makes no sense.
        """
        self.last_used_ns = now
        frame = self._frames.whole(data)
        is_all = frame is not None
        if not is_all:
            self._frames.feed(data)
            frame = self._next_frame()
        while frame is not None:
            answer = self._match(frame)
            if answer is not None and self.state is _NEGOTIATING:
                self._negotiated(answer.frame, now)
            elif answer is not None:
                yield answer
            frame = None if is_all else self._next_frame()

    def _next_frame(self) -> bytes | None:
        try:
            return self._frames.next()
        except OversizedError as error:
            raise WireError(self._oversized(error)) from error

    def _oversized(self, error: OversizedError) -> str:
        """What is too large, and what to do; a length that is none is called so."""
        if not self._in_flight or self._in_flight[0].correlation_id != error.correlation_id:
            return not_a_response(error.length)
        what, remedy = _OVERSIZED[self._in_flight[0].api]
        return f"{what} of {error.length} bytes, more than {RESPONSE_MAX_BYTES}: {remedy}"

    def _match(self, frame: bytes) -> Answer | None:
        """The request that a response belongs to (Kafka answers in order); None for one that needs none."""
        if len(frame) < _CORRELATION_ID_BYTES:
            raise WireError(f"a response of {len(frame)} bytes has no correlation id")
        correlation_id = correlation_id_of(frame)
        if self._in_flight and self._in_flight[0].correlation_id == correlation_id:
            if self._outgoing and self._in_flight[0] in self._outgoing:
                # Its batches' buffers would be freed while the kernel still takes bytes from them (law 7).
                raise WireError("a response before its request was sent")
            return Answer(self._in_flight.popleft(), frame)
        if correlation_id & 1 and 0 < correlation_id <= self._next_id + 1:
            return None
        raise WireError(f"a response with correlation id {correlation_id}, which is not the next one")

    def _negotiated(self, frame: bytes, now: int) -> None:
        """Take the answer to ApiVersions (KIP-511)."""
        try:
            answer = decode_api_versions(self._asked, frame)
        except WireError as error:
            raise NegotiationError(str(error)) from error
        if answer.error == _UNSUPPORTED_VERSION and self._asked > 0:
            offered = common_version(API_VERSIONS, answer.ranges)
            self._asked = offered if offered is not None and offered < self._asked else 0
            self._ask_versions(now)
            return
        if answer.error != 0:
            raise NegotiationError(f"ApiVersions v{self._asked} failed: {error_name(answer.error)}")
        for api in (PRODUCE, METADATA, INIT_PRODUCER_ID):
            version = common_version(api, answer.ranges, flexible=self._flexible or api == METADATA)
            if version is not None:
                self.versions[api] = version
        self._become(State.READY)

    def close(self) -> list[InFlight]:
        """Nothing more comes or goes; the requests that were not answered."""
        self.state = State.CLOSED
        lost = [*self._in_flight, *(waiting for waiting in self._outgoing if waiting.correlation_id & 1)]
        self._in_flight.clear()
        self._outgoing.clear()
        self.has_outgoing = False
        self._frames.clear()
        return lost
