"""Producer ids: each idempotent producer asks the cluster for one, through any broker (KIP-98).

A refusal is not for ever, for permissions are given later and brokers are upgraded. What may be sent fails with it
until the backoff has ended; what comes after that waits while the cluster is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from slabpress.network import outcomes
from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.brokers import Brokers
from slabpress.network.connection import InFlight
from slabpress.network.messages import (
    INIT_PRODUCER_ID,
    decode_init_producer_id,
    encode_init_producer_id,
    error_name,
    is_retriable,
)

_UNSUPPORTED_VERSION: Final = 35
_CLUSTER_AUTHORIZATION_FAILED: Final = 31
# A refusal holds for so long at least: with no backoff at all, nothing would ever fail with it.
_REFUSED_FOR_NS: Final = 100 * NS_PER_MS


class IdentityContext(NamedTuple):
    """An InitProducerId request in flight, and the arena that it is for."""

    arena: int


class _Asking:
    """How far one arena is on its way to a producer id."""

    __slots__ = ("failures", "in_flight", "last_error", "not_before_ns")

    def __init__(self) -> None:
        self.failures = 0
        self.in_flight = False
        self.last_error = ""
        self.not_before_ns = 0


class Identities:
    """Gets a producer id for every idempotent arena that has none.

    Args:
        arenas: the arenas, by their number.
        brokers: who may be asked.
        backoff: between tries.
    """

    def __init__(self, arenas: Mapping[int, ArenaBatches], brokers: Brokers, backoff: Backoff) -> None:
        self._arenas = arenas
        self._brokers = brokers
        self._backoff = backoff
        self._asking: dict[int, _Asking] = {}

    def _waiting(self) -> list[tuple[int, _Asking]]:
        """The arenas to ask for, and that are not asked for yet."""
        waiting = []
        for number, arena in self._arenas.items():
            if arena.idempotent and arena.sequences.producer_id is None and arena.refused_id is None:
                asking = self._asking.setdefault(number, _Asking())
                if not asking.in_flight:
                    waiting.append((number, asking))
        return waiting

    def turn(self, now: int) -> bool:
        """Ask for what is due, where a broker can be asked; whether what may be sent is to be failed now."""
        refused = False
        for number, asking in self._waiting():
            if now < asking.not_before_ns:
                continue
            broker = self._brokers.for_metadata(now)
            if broker is None or broker.connection is None:
                break  # whoever wants metadata connects
            broker.asked_at_ns = now
            version = broker.connection.versions.get(INIT_PRODUCER_ID)
            if version is None:
                remedy = f"use Kafka 0.11 or newer: {broker} has no InitProducerId"
                self._refused(number, asking, _UNSUPPORTED_VERSION, remedy, now)
                refused = True
                continue
            connection = broker.connection
            correlation_id = connection.next_id()
            request = encode_init_producer_id(version, correlation_id, connection.client_id)
            connection.send(request, correlation_id, INIT_PRODUCER_ID, version, IdentityContext(number), now)
            asking.in_flight = True
            broker.flush(now)
        return refused

    def any_waiting(self) -> bool:
        """Whether ``turn`` has something to do once it can."""
        return bool(self._waiting())

    def next_time_ns(self, now: int) -> int | None:
        """When ``turn`` has something to do by itself."""
        return min((asking.not_before_ns for _, asking in self._waiting() if asking.not_before_ns > now), default=None)

    def answered(self, request: InFlight, context: IdentityContext, frame: bytes, now: int) -> int:
        """Apply a response; its throttle time in ms.

        Raises:
            WireError: it does not parse.
        """
        answer = decode_init_producer_id(request.version, frame)
        asking, arena = self._asking.get(context.arena), self._arenas.get(context.arena)
        if asking is None or arena is None:
            return answer.throttle_ms  # its producer was closed
        if answer.error == 0:
            arena.sequences.set_producer_id(answer.producer_id)
            del self._asking[context.arena]
        elif is_retriable(answer.error):
            self._again(asking, error_name(answer.error), now)
        else:
            denied = answer.error == _CLUSTER_AUTHORIZATION_FAILED
            remedy = "allow WRITE on a topic or IDEMPOTENT_WRITE on the cluster" if denied else "see the broker's log"
            self._refused(context.arena, asking, answer.error, remedy, now)
        return answer.throttle_ms

    def lost(self, context: IdentityContext, why: str, now: int) -> None:
        """The connection of a request was closed."""
        asking = self._asking.get(context.arena)
        if asking is not None:
            self._again(asking, why, now)

    def _again(self, asking: _Asking, why: str, now: int) -> None:
        asking.in_flight = False
        asking.last_error = why
        asking.failures += 1
        asking.not_before_ns = now + self._backoff.delay_ns(asking.failures)

    def _refused(self, number: int, asking: _Asking, error: int, remedy: str, now: int) -> None:
        self._again(asking, error_name(error), now)
        asking.not_before_ns = max(asking.not_before_ns, now + _REFUSED_FOR_NS)
        self._arenas[number].refuse_id(outcomes.no_producer_id(error, remedy), asking.not_before_ns)

    def why_none(self, number: int) -> str:
        """Why an arena has no producer id, as far as something went wrong; else empty."""
        asking = self._asking.get(number)
        return f"no producer id: {asking.last_error}" if asking is not None and asking.last_error else ""

    def forget(self, number: int) -> None:
        """The arena's producer was closed."""
        self._asking.pop(number, None)
