"""The order of sending: a FIFO of sealed batches for each topic-partition (law 4), and which of them may go now.

Pure: time is passed in, and whether a batch is READY is asked of its source. A queue is looked at only when
something about it changed, so a pass of the event loop costs what happened and not what exists.

The first batch of a queue that is not on the wire is its head. A queue is at most in one of these places:

    unready      its head is still being compressed (a worker's ring means: look at these)
    sendable     its head may be sent to its leader now
    leaderless   its head may be sent, but no leader is known
    retry heap   its head waits for its backoff to end
    none         it has no head, or as many batches in flight as it may have (it is muted)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Final, Protocol

# A broker that knows nothing of a producer takes any sequence as the first, so the second of two batches on the wire
# may be appended alone (ProducerAppendInfo.checkSequence). How long an acknowledgement says that it does know: much
# less than producer.id.expiration.ms, 24 hours, after which it forgets.
_KNOWN_FOR_NS: Final = 600_000_000_000


class Source(Protocol):
    """The arena that a batch lives in, as far as its order is concerned."""

    number: int
    retired: bool
    in_flight_limit: int
    queues: list[PartitionQueue | None]

    def is_ready(self, index: int) -> bool:
        """Whether the batch's state is READY."""
        ...

    def note_leader(self, queue: PartitionQueue) -> None:
        """Take note of the queue's new leader."""
        ...

    def begin_anew(self, queue: PartitionQueue) -> None:
        """Give the queue's batches new sequences; none of them is on the wire."""
        ...


class Batch:
    """A batch that was sealed and is not done.

    Attributes:
        queue: its topic-partition's queue.
        index: its descriptor.
        seal_number: its place in the order.
        deadline_ns: when its delivery timeout ends.
        ready: its state was seen to be READY; from then on it belongs to this process.
        parts: the bytes to send, header first, once they are made.
        size, records: how much that is, once it is measured; 0 before.
        held: what its source keeps of it from then on.
        failures: failed tries in a row.
        last_error: what the last failed try said.
    """

    __slots__ = (
        "deadline_ns",
        "failures",
        "held",
        "index",
        "last_error",
        "parts",
        "queue",
        "ready",
        "records",
        "seal_number",
        "size",
    )

    def __init__(self, queue: PartitionQueue, index: int, seal_number: int, deadline_ns: int) -> None:
        self.queue = queue
        self.index = index
        self.seal_number = seal_number
        self.deadline_ns = deadline_ns
        self.ready = False
        self.parts: list[memoryview] = []
        self.size = 0
        self.held: Any = None
        self.records = 0
        self.failures = 0
        self.last_error = ""


class PartitionQueue:
    """The batches of one topic-partition of one arena, in seal order.

    Attributes:
        source: the arena.
        topic, number: the topic-partition.
        index: its entry in the arena's partition table.
        waiting: batches that are not on the wire; the first is the head.
        on_wire: those that are.
        out_of_step: the broker misses a batch before the head: once nothing is on the wire it begins anew.
        known_until_ns: its leader knows the sequences, so several batches may be on the wire. Until then one: after a
            failed try (as Java's producer), at a new leader (as franz-go), in a new epoch.
        leader: the broker's node id, None where none is known.
        retry_at_ns: nothing is sent before.
    """

    __slots__ = (
        "expiry_armed",
        "index",
        "known_until_ns",
        "leader",
        "number",
        "on_wire",
        "out_of_step",
        "retry_armed",
        "retry_at_ns",
        "source",
        "topic",
        "waiting",
    )

    def __init__(self, source: Source, topic: str, number: int, index: int = 0) -> None:
        self.source = source
        self.topic = topic
        self.number = number
        self.waiting: list[Batch] = []  # short, mostly empty; an empty deque takes 700 bytes more
        self.index = index
        self.on_wire: list[Batch] = []
        self.out_of_step = False
        self.known_until_ns = 0
        self.leader: int | None = None
        self.retry_at_ns = 0
        self.expiry_armed = False
        self.retry_armed = False

    @property
    def in_flight(self) -> int:
        """How many batches are on the wire."""
        return len(self.on_wire)

    def is_first(self, batch: Batch) -> bool:
        """Whether every batch that was sealed before this one has its result."""
        others = [*self.on_wire, *self.waiting[:1]]
        return all(other is batch or other.seal_number > batch.seal_number for other in others)


class Queues:
    """Every topic-partition's queue, by what may be done with it.

    Attributes:
        sendable: for each leader and arena number the queues whose head may be sent, in turn.
        leaderless: queues whose head waits for a leader.
        expired: batches whose delivery timeout ended while they were not on the wire, to be reported.
        moved: some queue has another leader than before, since somebody set it to False: what the others may put into
            the arena has changed.
    """

    def __init__(self) -> None:
        self.sendable: dict[int, dict[int, dict[PartitionQueue, None]]] = {}
        self.leaderless: dict[PartitionQueue, None] = {}
        self.expired: list[Batch] = []
        self.moved = False
        self._unready: dict[int, dict[int, PartitionQueue]] = {}
        self._retries: list[tuple[int, int, PartitionQueue]] = []
        self._expiries: list[tuple[int, int, PartitionQueue]] = []
        self._pushes = 0

    def append(self, batch: Batch, now: int) -> None:
        """Take a batch that was sealed."""
        queue = batch.queue
        queue.waiting.append(batch)
        if len(queue.waiting) == 1:
            self._settle(queue, now)

    def has_unready(self, source: Source) -> bool:
        """Whether some queue waits for a worker."""
        return bool(self._unready.get(source.number))

    def became_ready(self, source: Source, indices: list[int], now: int) -> bool:
        """Look at the heads among these READY batches; whether there were any."""
        unready = self._unready.get(source.number)
        if not unready:
            return False
        queues = [queue for index in indices if (queue := unready.pop(index, None)) is not None]
        for queue in queues:
            self._settle(queue, now)
        return bool(queues)

    def set_leader(self, queue: PartitionQueue, leader: int | None, now: int) -> None:
        """Route a queue to another broker; what it holds follows."""
        if queue.leader != leader:
            self._withdraw(queue)
            queue.leader = leader
            queue.known_until_ns = 0
            queue.source.note_leader(queue)
            self.moved = True
            self._settle(queue, now)

    def heads(self, leader: int) -> Iterator[Batch]:
        """The batches that may be sent to a broker now: one of each arena, then a second of each, and so on.

        A producer that floods hundreds of topic-partitions gets no more of a request than one with a single one.
        """
        turns = [iter(queues) for queues in self.sendable.get(leader, {}).values()]
        while turns:
            still = []
            for queues in turns:
                queue = next(queues, None)
                if queue is not None:
                    still.append(queues)
                    yield queue.waiting[0]
            turns = still

    def forget(self, source: Source) -> None:
        """Let go of everything of an arena; its batches on the wire must not be put back."""
        for queue in source.queues:
            if queue is not None:
                self._withdraw(queue)
                queue.waiting.clear()
        self._unready.pop(source.number, None)
        self.expired = [batch for batch in self.expired if batch.queue.source is not source]
        for heap in (self._retries, self._expiries):
            heap[:] = [entry for entry in heap if entry[2].source is not source]
            heapq.heapify(heap)

    def take(self, batch: Batch, now: int) -> None:
        """Note that a head goes on the wire; its arena's next turn comes after all others'."""
        queue = batch.queue
        self._withdraw(queue)
        sources = {} if queue.leader is None else self.sendable.get(queue.leader, {})
        if (own := sources.pop(queue.source.number, None)) is not None:
            sources[queue.source.number] = own
        queue.waiting.pop(0)
        queue.on_wire.append(batch)
        if queue.waiting:
            self._settle(queue, now)

    def appended(self, queue: PartitionQueue, now: int) -> None:
        """Note that the leader has appended a batch: it knows the sequences from now on."""
        queue.known_until_ns = now + _KNOWN_FOR_NS

    def done(self, batch: Batch, now: int) -> None:
        """Note that a batch has come off the wire for good."""
        batch.queue.on_wire.remove(batch)
        self._settle(batch.queue, now)

    def put_back(self, batch: Batch, retry_at_ns: int, now: int) -> None:
        """Note that a batch has come off the wire and is to be sent again, before its successors."""
        queue = batch.queue
        self._withdraw(queue)
        queue.on_wire.remove(batch)
        queue.known_until_ns = 0
        place = 0
        while place < len(queue.waiting) and queue.waiting[place].seal_number < batch.seal_number:
            place += 1
        queue.waiting.insert(place, batch)
        queue.retry_at_ns = max(queue.retry_at_ns, retry_at_ns)
        self._settle(queue, now)

    def drop_head(self, batch: Batch, now: int) -> None:
        """Note that a head will never be sent."""
        self._withdraw(batch.queue)
        batch.queue.waiting.pop(0)
        self._settle(batch.queue, now)

    def next_time_ns(self) -> int | None:
        """When ``tick`` has something to do; None if nothing is timed."""
        times = [heap[0][0] for heap in (self._retries, self._expiries) if heap]
        return min(times) if times else None

    def tick(self, now: int) -> None:
        """Let the time pass: backoffs and delivery timeouts end."""
        while self._retries and self._retries[0][0] <= now:
            queue = heapq.heappop(self._retries)[2]
            queue.retry_armed = False
            self._settle(queue, now)
        while self._expiries and self._expiries[0][0] <= now:
            queue = heapq.heappop(self._expiries)[2]
            queue.expiry_armed = False
            self._settle(queue, now)

    def _withdraw(self, queue: PartitionQueue) -> None:
        self.leaderless.pop(queue, None)
        if queue.leader is None or (sources := self.sendable.get(queue.leader)) is None:
            return
        peers = sources.get(queue.source.number, {})
        if queue in peers:
            del peers[queue]
            if not peers:
                del sources[queue.source.number]
            if not sources:
                del self.sendable[queue.leader]

    def _settle(self, queue: PartitionQueue, now: int) -> None:
        """Find the place that a queue belongs to now."""
        self._withdraw(queue)
        while queue.waiting:
            head = queue.waiting[0]
            if not head.ready:
                if not queue.source.is_ready(head.index):
                    # Even past its deadline it belongs to a worker, so it expires when it is READY.
                    self._unready.setdefault(queue.source.number, {})[head.index] = queue
                    return
                head.ready = True
            if now < head.deadline_ns:
                self._place(queue, head, now)
                return
            queue.waiting.pop(0)
            self.expired.append(head)

    def _place(self, queue: PartitionQueue, head: Batch, now: int) -> None:
        # Within a queue deadlines only grow, for its batches were opened one after the other.
        if not queue.expiry_armed:
            queue.expiry_armed = True
            self._push(self._expiries, head.deadline_ns, queue)
        alone = queue.out_of_step or now >= queue.known_until_ns
        if queue.in_flight >= (1 if alone else queue.source.in_flight_limit):
            return
        if queue.out_of_step:
            queue.out_of_step, queue.known_until_ns = False, 0
            queue.source.begin_anew(queue)
        if queue.retry_at_ns > now:
            if not queue.retry_armed:
                queue.retry_armed = True
                self._push(self._retries, queue.retry_at_ns, queue)
        elif queue.leader is None:
            self.leaderless[queue] = None
        else:
            sources = self.sendable.setdefault(queue.leader, {})
            sources.setdefault(queue.source.number, {})[queue] = None

    def _push(self, heap: list[tuple[int, int, PartitionQueue]], time_ns: int, queue: PartitionQueue) -> None:
        """At most one entry a queue and heap (``*_armed``); the push number orders equal times."""
        self._pushes += 1
        heapq.heappush(heap, (time_ns, self._pushes, queue))
