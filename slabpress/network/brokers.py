"""All brokers: those the cluster names, and the bootstrap servers that lead to them, and lead there again.

When every broker that is known has failed, the bootstrap servers are next (KIP-899); the known ones are tried still,
for they may only restart. ``start_over`` gives them up (KIP-1102). A name is looked up anew for every connection.
With ``metadata_recovery_strategy=none`` the bootstrap servers are asked until brokers are known, and never again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from slabpress.network.broker import Broker, Tools
from slabpress.network.resolver import split_address
from slabpress.network.wire import BrokerAddress

REBOOTSTRAP: Final = "rebootstrap"


class Brokers:
    """The table of brokers.

    Args:
        tools: what brokers share; its settings name the bootstrap servers.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._may_return = tools.settings.metadata_recovery_strategy == REBOOTSTRAP
        self._known: dict[int, Broker] = {}
        # Brokers that the cluster no longer names, until their last request is answered.
        self._retired: list[Broker] = []
        # Bootstrap servers have negative ids, which no broker has.
        self._bootstrap = [
            Broker(-1 - place, *split_address(server), tools)
            for place, server in enumerate(tools.settings.bootstrap_servers)
        ]

    def __iter__(self) -> Iterator[Broker]:
        return iter([*self._known.values(), *self._bootstrap, *self._retired])

    def get(self, node: int) -> Broker | None:
        """A broker that the cluster names."""
        return self._known.get(node)

    def update(self, addresses: dict[int, BrokerAddress], now: int) -> None:
        """Take the cluster's list of brokers."""
        for broker in list(self._known.values()):
            address = addresses.get(broker.node)
            if address is None or (address.host, address.port) != (broker.host, broker.port):
                broker.retired = True
                self._retired.append(self._known.pop(broker.node))
        for address in addresses.values():
            if address.node not in self._known:
                self._known[address.node] = Broker(address.node, address.host, address.port, self._tools)
        self._close_unneeded(now)

    def _close_unneeded(self, now: int) -> None:
        """Close what leads nowhere any more: bootstrap connections once brokers are known, retired brokers."""
        if self._known:
            for broker in self._bootstrap:
                if broker.connection is not None and broker.connection.in_flight == 0:
                    broker.close(now)
        for broker in self._retired:
            if broker.connection is None or broker.connection.in_flight == 0:
                broker.close(now)
        self._retired = [broker for broker in self._retired if broker.connection is not None]

    @property
    def may_start_over(self) -> bool:
        """Whether there are brokers to be given up, and that is wanted."""
        return self._may_return and bool(self._known)

    def start_over(self, now: int) -> None:
        """Give up every broker that is known, and its connection."""
        known, self._known = self._known, {}
        for broker in known.values():
            broker.retired = True
        for broker in known.values():
            broker.close(now)

    def for_metadata(self, now: int) -> Broker | None:
        """The ready broker with the least to do, of equal ones who was not asked for longest; None if there is none.

        One that takes requests and answers none would otherwise be asked again and again.
        """
        ready = [broker for broker in self if broker.can_send(now) and not broker.retired]
        return min(ready, key=lambda b: (b.connection.in_flight if b.connection else 0, b.asked_at_ns), default=None)

    def connect_any(self, now: int) -> None:
        """Try to reach somebody to ask: brokers before bootstrap servers, those that failed least first.

        When every known broker has failed, the bootstrap servers have failed less and are next (KIP-899).
        """
        # One that failed before may be failing again, slowly: it does not keep others from being tried.
        if any(broker.is_ready or (broker.is_setting_up and not broker.failures) for broker in self):
            return
        candidates = [broker for broker in self._reachable() if broker.can_connect(now)]
        if candidates:
            min(candidates, key=lambda b: (b.failures, b.node < 0)).connect(now)

    def _reachable(self) -> list[Broker]:
        """Who may be connected to for metadata."""
        alone = self._known and not self._may_return
        return [broker for broker in self if not broker.retired and not (alone and broker.node < 0)]

    @property
    def any_ready(self) -> bool:
        """Whether some connection works."""
        return any(broker.is_ready for broker in self)

    @property
    def none_reachable(self) -> bool:
        """Whether nobody can be asked: no connection works, and every broker that is known has failed."""
        return not self.any_ready and all(broker.failures for broker in self._known.values())

    def next_retry_ns(self) -> int | None:
        """When the next broker may be connected to."""
        idle = [b.retry_at_ns for b in self._reachable() if b.connection is None and not b.is_setting_up]
        return min(idle, default=None)

    def bootstrap_report(self) -> str:
        """Each bootstrap server with its last error; empty where none was tried in vain."""
        return "; ".join(f"{broker}: {broker.last_error}" for broker in self._bootstrap if broker.last_error)
