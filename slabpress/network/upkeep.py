"""What the event loop sees to now and then: metadata, producer ids, brokers, arenas that go.

Their deadlines are seconds and minutes away, so they are looked at when something of their kind has happened or a time
has come, not in every turn: between a record that comes alone and its result there are two, and each look at everything
took as long as the sending. Whatever may concern it says so (``restless``); what the plain way of a batch sets, the
deadline of a request, is taken along (``note_due``). A deadline that was put off since, as that of a request which was
answered, ends a wait once for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from slabpress.network.batches import ArenaBatches
from slabpress.network.brokers import Brokers
from slabpress.network.departures import Departures
from slabpress.network.identities import Identities
from slabpress.network.messages import error_name
from slabpress.network.partition import PartitionQueue
from slabpress.network.queues import NEVER_NS, Queues
from slabpress.network.refresh import Refresher
from slabpress.shm.control import COORDINATOR, Control


class Upkeep:
    """Sees to what is not the way of a batch.

    Args:
        control: the control block.
        arenas: the arenas, by their number.
        queues: whose heads may lack a connection.
        brokers, refresher, identities, departures: what is seen to.

    Attributes:
        restless: something may have happened that concerns it; it is not to wait for ``due_ns``.
        due_ns: when it has something to do, if nothing happens before.
        report: what was last said of why there is no metadata.
    """

    def __init__(
        self,
        control: Control,
        arenas: Mapping[int, ArenaBatches],
        queues: Queues,
        brokers: Brokers,
        refresher: Refresher,
        identities: Identities,
        departures: Departures,
    ) -> None:
        self._control = control
        self._arenas = arenas
        self._queues = queues
        self._brokers = brokers
        self._refresher = refresher
        self._identities = identities
        self._departures = departures
        self.restless = True
        self.due_ns = 0
        self.report = ""

    def is_time(self, now: int) -> bool:
        """Whether there may be something to do."""
        return self.restless or now >= self.due_ns

    def note_due(self, time_ns: int) -> None:
        """Look no later than this."""
        self.due_ns = min(self.due_ns, time_ns)

    def turn(self, now: int) -> None:
        """Do what is due, and find out when to look again."""
        self._refresher.turn(now)
        refused = self._identities.turn(now)
        self._write_report()
        if self._refresher.answered_topics:
            self._refresher.answered_topics = 0
            self._control.wake(COORDINATOR)
        if self._departures:
            self._departures.go_on()
        # What was sent before this turn's refusal was known fails in the next one: no response comes to begin it.
        self.due_ns = now if refused else self._next_due_ns(now)
        # What could not be done yet is tried again whenever something has happened.
        waits_for_metadata = self._refresher.schedule.is_due(now)
        self.restless = waits_for_metadata or self._identities.any_waiting() or bool(self._departures)

    def _write_report(self) -> None:
        """While no broker gives metadata, say why; the coordinator quotes it."""
        report = self._refresher.report()
        if report == self.report:
            return
        self.report = report
        for arena in self._arenas.values():
            arena.arena.write_report(report)
        self._control.wake(COORDINATOR)

    def _next_due_ns(self, now: int) -> int:
        """When there is something to see to, if nothing happens before."""
        times = [
            self._identities.next_time_ns(now),
            self._refresher.give_up_at_ns(),
            *(broker.deadline_ns() for broker in self._brokers),
        ]
        schedule = self._refresher.schedule
        if schedule.is_due(now):
            if self._brokers.for_metadata(now) is not None:
                return now
            # It could not be sent: somebody is being connected to, muted or busy, or may be tried again later.
            times.append(self._brokers.next_retry_ns())
            times.extend(broker.muted_until_ns for broker in self._brokers if broker.is_ready)
        elif not schedule.in_flight:
            times.append(schedule.due_at_ns)
        for node in self._queues.sendable:
            broker = self._brokers.get(node)
            if broker is not None:
                times.append(broker.muted_until_ns if broker.is_ready else broker.retry_at_ns)
        return min((time for time in times if time is not None and time >= now), default=NEVER_NS)

    def why_waiting(self, queue: PartitionQueue) -> str:
        """Why a queue's head was not sent, for the text of a delivery timeout."""
        error = self._refresher.topic_error(queue.topic)
        if error:
            return f"metadata says {error_name(error)}"
        if queue.leader is None:
            return self._refresher.report() or "the partition has no leader"
        if no_id := self._identities.why_none(queue.source.number):
            return no_id
        broker = self._brokers.get(queue.leader)
        if broker is not None and broker.last_error:
            return f"leader {broker.node} at {broker}: {broker.last_error}"
        return f"leader {queue.leader} did not take it in time"
