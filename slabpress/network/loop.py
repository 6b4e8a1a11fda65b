"""The event loop: one wait for everything, and what is done when it ends.

    wait -> sockets, bell -> follow seals, newly READY, newly wanted -> Produce requests -> upkeep -> wait
The wait ends at the next deadline of anything that is timed, or not at all: an idle process uses no CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.broker import Broker, Tools
from slabpress.network.brokers import Brokers
from slabpress.network.connection import Answer, InFlight
from slabpress.network.departures import Departures
from slabpress.network.identities import Identities, IdentityContext
from slabpress.network.metadata import Cluster
from slabpress.network.poller import READ, make_poller
from slabpress.network.produce import NOTHING_ELSE, ProduceContext, Producing
from slabpress.network.queues import NEVER_NS, Queues
from slabpress.network.refresh import MetadataContext, Refresher
from slabpress.network.resolver import Resolver
from slabpress.network.room import is_worker_wanted
from slabpress.network.settings import NetworkSettings
from slabpress.network.transport import RECEIVE_BYTES
from slabpress.network.upkeep import Upkeep
from slabpress.shm.control import COORDINATOR
from slabpress.shm.handover import Child

_NS_PER_S: Final = 1_000_000_000


class Loop:
    """The network process's work.

    Args:
        child: what this process was given: the control block, and word of the arenas.
        settings: this process's settings.
        clock: CLOCK_MONOTONIC in ns, the clock of the batches' creation times.
        random: uniform in 0 .. 1, for the jitter.
    """

    def __init__(
        self,
        child: Child,
        settings: NetworkSettings,
        clock: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self._child = child
        self._control = child.control
        self._bell = child.control.bells[child.slot]
        self._clock = clock
        self._watch = child.control.watch(child.slot)
        self.arenas: dict[int, ArenaBatches] = {}
        self._poller = make_poller()
        self._must_drain = self._poller.register_bell(self._bell)
        for descriptor in child.watched:
            self._poller.register(descriptor, READ)
        retry_backoff = Backoff(settings.retry_backoff_ms, settings.retry_backoff_max_ms, random)
        reconnect_backoff = Backoff(settings.reconnect_backoff_ms, settings.reconnect_backoff_max_ms, random)
        self._resolver = Resolver(self._bell)
        self._request_timeout_ns = settings.request_timeout_ms * NS_PER_MS
        tools = Tools(settings, self._poller, self._resolver, reconnect_backoff, bytearray(RECEIVE_BYTES), self)
        self.queues = Queues()
        self.cluster = Cluster()
        self.brokers = Brokers(tools)
        self.refresher = Refresher(self.arenas, self.cluster, self.brokers, self.queues, settings, retry_backoff)
        self.identities = Identities(self.arenas, self.brokers, retry_backoff)
        self._departures = Departures(child, self.brokers)
        self._upkeep = Upkeep(
            self._control, self.arenas, self.queues, self.brokers, self.refresher, self.identities, self._departures
        )
        why_waiting = self._upkeep.why_waiting
        self.producing = Producing(settings, self.arenas, self.queues, self.cluster, retry_backoff, why_waiting)

    def start(self) -> None:
        """Take over what a predecessor left."""
        self._follow_changes()
        # What the predecessor did last may have rung for nobody.
        self._control.wake(COORDINATOR)
        self._control.wake_one_worker()

    def _follow_changes(self) -> None:
        """Take on arenas that were added, retire those that were taken away."""
        for change in self._child.changes():
            if change.arena is not None:
                arena = ArenaBatches(change.number, change.arena, change.settings)
                arena.take_over()
                self.arenas[change.number] = arena
                self._watch.add(arena.inbox)
                arena.arena.write_report(self._upkeep.report)
            elif (gone := self.arenas.pop(change.number, None)) is not None:
                self._watch.remove(gone.inbox)
                self.queues.forget(gone)
                self.refresher.forget(change.number)
                self.identities.forget(change.number)
                self._departures.begin(gone)

    def forget(self, descriptor: int) -> None:
        """Wait for a descriptor no more: it tells of what has happened already."""
        if descriptor >= 0:
            self._poller.unregister(descriptor)

    def turn(self, longest_s: float | None) -> bool:
        """Do everything that can be done now, then wait for more.

        Args:
            longest_s: the longest wait, None for no limit.

        Returns:
            Whether this may be the end: the job said something, its pidfd rang, or nothing did.
        """
        now = self._clock()
        orders = self._watch.has_news() and self._hear(now)
        if now >= self.queues.next_ns:
            self.queues.tick(now)
        if self._upkeep.is_time(now):
            self._upkeep.restless = True
            for broker in self.brokers:
                broker.check(now)
        if self.queues.sendable:
            self._send(now)
        if self.queues.expired:
            self.producing.report_expired()
        # After what is to be sent has shown whom it lacks; and a record that comes alone waits for nothing else.
        if self._upkeep.restless or self.queues.leaderless or self.producing.lacks_id:
            self.producing.lacks_id = False
            self._upkeep.turn(now)
        if self.producing.finished or self.queues.moved:
            self._tell_of_results()
        # Orders that were heard are no news any more, and one of them may be to end.
        return self._wait(now, 0.0 if orders else longest_s) or orders

    def close(self) -> None:
        """Close every socket."""
        now = self._clock()
        for broker in self.brokers:
            broker.close(now)
        self._poller.close()

    def _hear(self, now: int) -> bool:
        """Take the news of the other processes; whether there were orders of the job's."""
        orders = self._watch.take_orders()
        if orders:
            self._follow_changes()
            self._upkeep.restless = True
        for arena in self.arenas.values():
            if not arena.has_arrivals:
                continue
            if arena.inbox.take_wanted():
                self.refresher.look(now)
                self._upkeep.restless = True
            self.queues.became_ready(arena, arena.newly_ready(), now)
            for batch in arena.follow():
                if batch.queue.leader is None and not batch.queue.waiting:
                    self.refresher.route_one(batch.queue, now)
                self.queues.append(batch, now)
        return orders

    def _send(self, now: int) -> None:
        """Send what may be sent, connect to leaders that have no connection."""
        for node in list(self.queues.sendable):
            broker = self.brokers.get(node)
            if broker is None:
                continue
            if not broker.is_ready or broker.muted_until_ns > now:
                self._upkeep.restless = True  # it has times of its own
            if broker.can_connect(now):
                broker.connect(now)
            while broker.can_send(now) and broker.connection is not None and node in self.queues.sendable:
                if not self.producing.send(node, broker.connection, now):
                    break
                self._upkeep.note_due(now + self._request_timeout_ns)
                broker.flush(now)

    def _tell_of_results(self) -> None:
        """Wake who may go on because of what was done."""
        moved, self.producing.finished, self.queues.moved = self.queues.moved, 0, False
        told = [arena.tell_of_results() for arena in self.arenas.values() if arena.has_news]
        if moved or not told or not all(told):
            self._control.wake(COORDINATOR)
        self._wake_worker()

    def _wake_worker(self) -> None:
        """Ring a worker that sleeps, if something waits for the room that there is now."""
        arenas = [arena for arena in self.arenas.values() if arena.needs_workers]
        slot = self._control.sleeping_worker() if arenas else None
        if slot is not None and any(is_worker_wanted(arena.arena) for arena in arenas):
            self._control.bells[slot].ring()

    def _wait(self, now: int, longest_s: float | None) -> bool:
        timeout_s: float | None = 0.0
        orders = False
        if is_busy := self._watch.lie_down():
            orders = self._hear(now)
        else:
            timeout_s = self._timeout_s(now)
            if longest_s is not None:
                timeout_s = longest_s if timeout_s is None else min(timeout_s, longest_s)
        events = self._poller.poll(timeout_s)
        self._watch.get_up()
        now = self._clock()
        is_end = orders or not (events or is_busy)  # to ask after the job is a system call
        for data, mask in events:
            if data is self._bell:
                self._rung(now)
            elif isinstance(data, Broker):
                # One that is being set up has times of its own; one that is ready says what happens to it.
                self._upkeep.restless |= not data.is_ready
                data.handle(mask, now)
            else:
                is_end = True
        if self.producing.finished:
            self._tell_of_results()  # what the responses said, before anything else: programs wait for it
        return is_end

    def _rung(self, now: int) -> None:
        if self._must_drain:
            self._bell.drain()
        if not self._resolver.under_way:
            return
        for result in self._resolver.results():
            self._upkeep.restless = True
            for broker in self.brokers:
                broker.resolved(result, now)

    def _timeout_s(self, now: int) -> float | None:
        """How long nothing happens by itself."""
        if self.queues.expired:  # what a broker gave back in this turn, after the expired were reported
            return 0.0
        time = min(self._upkeep.due_ns, self.queues.next_ns)
        # A time that is just now has not been acted on if it was set after that was looked at: come back soon.
        return None if time >= NEVER_NS else max(time - now, NS_PER_MS) / _NS_PER_S

    # The owner's side of Broker.

    def became_ready(self, broker: Broker) -> None:
        """Count connections: those at a time, which the plan counts, and those after a broker's first."""
        self._upkeep.restless = True
        for arena in self.arenas.values():
            arena.counters.note_connections(sum(other.is_ready for other in self.brokers))
        if broker.established > 1:
            self._count("reconnects")

    def answered(self, broker: Broker, answer: Answer, now: int) -> None:
        """Apply a response to the one who asked."""
        request = answer.request
        if isinstance(request.context, ProduceContext):
            applied = self.producing.answered(request, request.context, answer.frame, now)
            if applied is NOTHING_ELSE:
                return
            self._upkeep.restless = True
            throttle_ms = applied.throttle_ms
            if applied.leaders_changed:
                self.brokers.update(self.cluster.brokers, now)
                self.refresher.route(now)
            if applied.metadata_is_stale:
                self.refresher.schedule.soon(now)
            self._mute(broker, throttle_ms, now)
            return
        self._upkeep.restless = True
        if isinstance(request.context, IdentityContext):
            throttle_ms = self.identities.answered(request, request.context, answer.frame, now)
        else:
            throttle_ms = self.refresher.answered(request, answer.frame, now)
        self._mute(broker, throttle_ms, now)

    def _mute(self, broker: Broker, throttle_ms: int, now: int) -> None:
        if throttle_ms:
            broker.mute(throttle_ms, now)
            self._count("throttle_ms", throttle_ms)

    def _count(self, counter: str, amount: int = 1) -> None:
        """Count what concerns every producer."""
        for arena in self.arenas.values():
            arena.counters.count(counter, amount)

    def handed_over(self, request: InFlight, now: int) -> None:
        """Finish the batches of an acks=0 request."""
        if isinstance(request.context, ProduceContext):
            self.producing.handed_over(request.context, now)

    def lost(self, broker: Broker, requests: list[InFlight], now: int) -> None:
        """Take back what was on a connection that is closed now; its leaders may have moved."""
        self._upkeep.restless = True
        why = f"{broker}: {broker.last_error or 'closed the connection'}"
        for request in requests:
            if isinstance(request.context, ProduceContext):
                self.producing.lost(request.context, f"broker {broker.node} at {why}", now)
            elif isinstance(request.context, MetadataContext):
                self.refresher.lost(why, now)
            elif isinstance(request.context, IdentityContext):
                self.identities.lost(request.context, why, now)
        # With acks=0 a closed connection is the only way to hear that a leader has moved.
        deaf = any(arena.acks == 0 for arena in self.arenas.values())
        if (broker.last_error or deaf) and not broker.retired and broker.node >= 0:
            self.refresher.schedule.soon(now)
