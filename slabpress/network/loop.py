"""The event loop: one wait for everything, and what is done when it ends.

    wait -> sockets, bell -> follow seals, newly READY, newly wanted -> metadata -> Produce requests -> wait
The wait ends at the next deadline of anything that is timed, or not at all: an idle process uses no CPU.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable
from typing import Final

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.broker import Broker, Tools
from slabpress.network.brokers import Brokers
from slabpress.network.connection import Answer, InFlight
from slabpress.network.identities import Identities, IdentityContext
from slabpress.network.messages import error_name
from slabpress.network.metadata import Cluster
from slabpress.network.produce import ProduceContext, Producing
from slabpress.network.queues import Batch, PartitionQueue, Queues
from slabpress.network.refresh import MetadataContext, Refresher
from slabpress.network.resolver import Resolver
from slabpress.network.room import is_worker_wanted
from slabpress.network.settings import NetworkSettings
from slabpress.network.transport import RECEIVE_BYTES
from slabpress.shm.control import COORDINATOR
from slabpress.shm.handover import Child

_NS_PER_S: Final = 1_000_000_000
_NEVER_NS: Final = 1 << 63


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
        self._slot = child.slot
        self._bell = child.control.bells[child.slot]
        self._clock = clock
        self._report = ""
        self.arenas: dict[int, ArenaBatches] = {}
        self._leaving: list[ArenaBatches] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        for descriptor in child.watched:
            self._selector.register(descriptor, selectors.EVENT_READ)
        retry_backoff = Backoff(settings.retry_backoff_ms, settings.retry_backoff_max_ms, random)
        reconnect_backoff = Backoff(settings.reconnect_backoff_ms, settings.reconnect_backoff_max_ms, random)
        self._resolver = Resolver(self._bell)
        self._due_ns = 0  # before this nothing that was timed when the last wait began can be due
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        tools = Tools(settings, self._selector, self._resolver, reconnect_backoff, buffer, self)
        self.queues = Queues()
        self.cluster = Cluster()
        self.brokers = Brokers(tools)
        self.refresher = Refresher(self.arenas, self.cluster, self.brokers, self.queues, settings, retry_backoff)
        self.identities = Identities(self.arenas, self.brokers, retry_backoff)
        self.producing = Producing(settings, self.arenas, self.queues, self.cluster, retry_backoff, self._why_waiting)

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
                arena.arena.write_report(self._report)
            elif (gone := self.arenas.pop(change.number, None)) is not None:
                self.queues.forget(gone)
                self.refresher.forget(change.number)
                self.identities.forget(change.number)
                gone.retire()
                self._leaving.append(gone)

    def _let_go(self) -> None:
        """Unmap the retired arenas that no socket takes bytes from any more (law 7)."""
        connections = [broker.connection for broker in self.brokers if broker.connection is not None]
        for gone in list(self._leaving):
            if any(_batches_of(gone, connection.outgoing()) for connection in connections):
                continue
            self._leaving.remove(gone)
            for queue in gone.queues:
                for batch in queue.on_wire if queue is not None else ():
                    batch.parts = []  # views of the arena; the response, if one comes, will find nobody interested
            gone.queues.clear()
            self._child.let_go(gone.arena)

    def forget(self, descriptor: int) -> None:
        """Wait for a descriptor no more: it tells of what has happened already."""
        if descriptor >= 0:
            self._selector.unregister(descriptor)

    def turn(self, longest_s: float | None) -> bool:
        """Do everything that can be done now, then wait for more.

        Args:
            longest_s: the longest wait, None for no limit.

        Returns:
            Whether the job may have ended: its pidfd rang, or nothing did.
        """
        now = self._clock()
        self._follow_changes()
        self._look(now)
        self.queues.tick(now)
        if now >= self._due_ns:
            for broker in self.brokers:
                broker.check(now)
        self._send(now)  # first: a record that comes alone waits for nothing else
        self.refresher.turn(now)
        self.identities.turn(now)  # after what is to be sent has shown for whom
        self._tell_others()
        if self._leaving:
            self._let_go()
        return self._wait(now, longest_s)

    def close(self) -> None:
        """Close every socket."""
        now = self._clock()
        for broker in self.brokers:
            broker.close(now)
        self._selector.close()

    def _look(self, now: int) -> bool:
        """Look at the state words for news of the other processes; whether there was any."""
        news = self.refresher.look(now)
        for arena in self.arenas.values():
            if self.queues.has_unready(arena):
                news |= self.queues.became_ready(arena, arena.ready(), now)
            if arena.has_new_seals:
                news = True
                for batch in arena.follow():
                    if not batch.queue.waiting and batch.queue.leader is None:
                        self.refresher.route_one(batch.queue, now)
                    self.queues.append(batch, now)
        return news

    def _send(self, now: int) -> None:
        """Send what may be sent, connect to leaders that have no connection."""
        for node in list(self.queues.sendable):
            broker = self.brokers.get(node)
            if broker is None:
                continue
            if broker.can_connect(now):
                broker.connect(now)
            while broker.can_send(now) and broker.connection is not None and node in self.queues.sendable:
                if not self.producing.send(node, broker.connection, now):
                    break
                broker.flush(now)
        if self.queues.expired:
            self.producing.report_expired()

    def _tell_others(self) -> None:
        """Wake who may go on because of what was done."""
        self._write_report()
        self._tell_of_results()
        if self.refresher.answered_topics:
            self.refresher.answered_topics = 0
            self._control.wake(COORDINATOR)

    def _tell_of_results(self) -> None:
        if self.producing.finished or self.queues.moved:
            moved, self.producing.finished, self.queues.moved = self.queues.moved, 0, False
            told = [arena.tell_of_results() for arena in self.arenas.values() if arena.has_news]
            if moved or not told or not all(told):
                self._control.wake(COORDINATOR)
            self._wake_worker()

    def _wake_worker(self) -> None:
        """Ring a worker that sleeps, if something waits for the room that there is now."""
        slot = self._control.sleeping_worker()
        if slot is None:
            return
        if any(arena.needs_workers and is_worker_wanted(arena.arena) for arena in self.arenas.values()):
            self._control.bells[slot].ring()

    def _write_report(self) -> None:
        """While no broker gives metadata, say why; the coordinator quotes it."""
        report = self.refresher.report()
        if report == self._report:
            return
        self._report = report
        for arena in self.arenas.values():
            arena.arena.write_report(report)
        self._control.wake(COORDINATOR)

    def _wait(self, now: int, longest_s: float | None) -> bool:
        self._control.lie_down(self._slot)
        timeout_s: float | None = 0.0
        self._due_ns = 0
        if not (self._look(now) or self._child.has_changes() or self._control.stopping):
            timeout_s = self._timeout_s(now)
            self._due_ns = _NEVER_NS if timeout_s is None else now + int(timeout_s * _NS_PER_S)
            if longest_s is not None:
                timeout_s = longest_s if timeout_s is None else min(timeout_s, longest_s)
        events = self._selector.select(timeout_s)
        self._control.get_up(self._slot)
        now = self._clock()
        job_may_have_ended = not events
        for key, mask in events:
            if isinstance(key.data, Broker):
                key.data.handle(mask, now)
                self._due_ns = 0  # it may have set times of its own
            elif key.fileobj is self._bell:
                self._bell.drain()
                for result in self._resolver.results():
                    self._due_ns = 0
                    for broker in self.brokers:
                        broker.resolved(result, now)
            else:
                job_may_have_ended = True
        if self.producing.finished:
            self._tell_of_results()  # what the responses said, before anything else: programs wait for it
        return job_may_have_ended

    def _timeout_s(self, now: int) -> float | None:
        """How long nothing happens by itself."""
        times = [
            self.queues.next_time_ns(),
            self.identities.next_time_ns(now),
            self.refresher.give_up_at_ns(),
            *(broker.deadline_ns() for broker in self.brokers),
        ]
        schedule = self.refresher.schedule
        if schedule.is_due(now):
            if self.brokers.for_metadata(now) is not None:
                return 0.0
            # It could not be sent: somebody is being connected to, muted or busy, or may be tried again later.
            times.append(self.brokers.next_retry_ns())
            times.extend(broker.muted_until_ns for broker in self.brokers if broker.is_ready)
        elif not schedule.in_flight:
            times.append(schedule.due_at_ns)
        for node in self.queues.sendable:
            broker = self.brokers.get(node)
            if broker is not None:
                times.append(broker.muted_until_ns if broker.is_ready else broker.retry_at_ns)
        # A time that is just now has not been acted on if it was set after that was looked at: come back soon.
        ahead = [max(time, now + NS_PER_MS) for time in times if time is not None and time >= now]
        return (min(ahead) - now) / _NS_PER_S if ahead else None

    def _why_waiting(self, queue: PartitionQueue) -> str:
        """Why a queue's head was not sent, for the text of a delivery timeout."""
        error = self.refresher.topic_error(queue.topic)
        if error:
            return f"metadata says {error_name(error)}"
        if queue.leader is None:
            return self.refresher.report() or "the partition has no leader"
        if no_id := self.identities.why_none(queue.source.number):
            return no_id
        broker = self.brokers.get(queue.leader)
        if broker is not None and broker.last_error:
            return f"leader {broker.node} at {broker}: {broker.last_error}"
        return f"leader {queue.leader} did not take it in time"

    # The owner's side of Broker.

    def became_ready(self, broker: Broker) -> None:
        """Count connections: those at a time, which the plan counts, and those after a broker's first."""
        for arena in self.arenas.values():
            arena.note_connections(sum(other.is_ready for other in self.brokers))
        if broker.established > 1:
            self._count("reconnects")

    def answered(self, broker: Broker, answer: Answer, now: int) -> None:
        """Apply a response to the one who asked."""
        request = answer.request
        if isinstance(request.context, ProduceContext):
            applied = self.producing.answered(request, request.context, answer.frame, now)
            throttle_ms = applied.throttle_ms
            if applied.leaders_changed:
                self.brokers.update(self.cluster.brokers, now)
                self.refresher.route(now)
            if applied.metadata_is_stale:
                self.refresher.schedule.soon(now)
        elif isinstance(request.context, IdentityContext):
            throttle_ms = self.identities.answered(request, request.context, answer.frame, now)
        else:
            throttle_ms = self.refresher.answered(request, answer.frame, now)
        if throttle_ms:
            broker.mute(throttle_ms, now)
            self._count("throttle_ms", throttle_ms)

    def _count(self, counter: str, amount: int = 1) -> None:
        """Count what concerns every producer."""
        for arena in self.arenas.values():
            arena.count(counter, amount)

    def handed_over(self, request: InFlight, now: int) -> None:
        """Finish the batches of an acks=0 request."""
        if isinstance(request.context, ProduceContext):
            self.producing.handed_over(request.context, now)

    def lost(self, broker: Broker, requests: list[InFlight], now: int) -> None:
        """Take back what was on a connection that is closed now; its leaders may have moved."""
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


def _batches_of(arena: ArenaBatches, requests: Iterable[InFlight]) -> list[Batch]:
    """The arena's batches that these requests carry."""
    contexts = [request.context for request in requests if isinstance(request.context, ProduceContext)]
    batches = [batch for context in contexts for batch in context.batches.values()]
    return [batch for batch in batches if batch.queue.source is arena]
