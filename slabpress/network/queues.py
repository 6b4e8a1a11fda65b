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
from collections.abc import Iterable, Iterator
from typing import Final

from slabpress.network.partition import IN_STEP, Batch, PartitionQueue, Source

# A broker that knows nothing of a producer takes any sequence as the first, so the second of two batches on the wire
# may be appended alone (ProducerAppendInfo.checkSequence). How long an acknowledgement says that it does know: much
# less than producer.id.expiration.ms, 24 hours, after which it forgets.
_KNOWN_FOR_NS: Final = 600_000_000_000
NEVER_NS: Final = 1 << 61


class Queues:
    """Every topic-partition's queue, by what may be done with it.

    Attributes:
        sendable: for each leader and arena number the queues whose head may be sent, in turn.
        leaderless: queues whose head waits for a leader.
        expired: batches whose delivery timeout ended while they were not on the wire, to be reported.
        moved: some queue has another leader than before, since somebody set it to False: what the others may put into
            the arena has changed.
        next_ns: when ``tick`` has something to do; NEVER_NS if nothing is timed.
    """

    def __init__(self) -> None:
        self.sendable: dict[int, dict[int, dict[PartitionQueue, None]]] = {}
        self.leaderless: dict[PartitionQueue, None] = {}
        self.expired: list[Batch] = []
        self.moved = False
        self.next_ns = NEVER_NS
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

    def heads(self, leader: int) -> Iterable[Batch]:
        """The batches that may be sent to a broker now: one of each arena, then a second of each, and so on.

        A producer that floods hundreds of topic-partitions gets no more of a request than one with a single one.
        """
        sources = self.sendable.get(leader, {})
        if len(sources) == 1:
            return (queue.waiting[0] for queue in next(iter(sources.values())))
        return self._in_turn(sources)

    @staticmethod
    def _in_turn(sources: dict[int, dict[PartitionQueue, None]]) -> Iterator[Batch]:
        turns = [iter(queues) for queues in sources.values()]
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
        self._set_next()

    def take(self, batch: Batch, now: int) -> None:
        """Note that a head goes on the wire; its arena's next turn comes after all others'."""
        queue = batch.queue
        self._withdraw(queue)
        sources = None if queue.leader is None else self.sendable.get(queue.leader)
        if sources and len(sources) > 1 and (own := sources.pop(queue.source.number, None)) is not None:
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
        queue = batch.queue
        queue.on_wire.remove(batch)
        if queue.waiting and (not queue.is_placed or queue.out_of_step):  # else it stays where it is
            self._settle(queue, now)

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

    def tick(self, now: int) -> None:
        """Let the time pass: backoffs and delivery timeouts end."""
        if now < self.next_ns:
            return
        while self._retries and self._retries[0][0] <= now:
            queue = heapq.heappop(self._retries)[2]
            queue.retry_armed = False
            self._settle(queue, now)
        while self._expiries and self._expiries[0][0] <= now:
            queue = heapq.heappop(self._expiries)[2]
            queue.expiry_armed = False
            self._settle(queue, now)
        self._set_next()

    def _set_next(self) -> None:
        self.next_ns = min((heap[0][0] for heap in (self._retries, self._expiries) if heap), default=NEVER_NS)

    def _withdraw(self, queue: PartitionQueue) -> None:
        if not queue.is_placed:
            return
        queue.is_placed = False
        if queue.leader is None:
            del self.leaderless[queue]
            return
        sources = self.sendable[queue.leader]
        peers = sources[queue.source.number]
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
        if head.seal_number >= queue.anew_from:
            queue.anew_from, queue.known_until_ns = IN_STEP, 0
            queue.source.begin_anew(queue)
        if queue.retry_at_ns > now:
            if not queue.retry_armed:
                queue.retry_armed = True
                self._push(self._retries, queue.retry_at_ns, queue)
            return
        queue.is_placed = True
        if queue.leader is None:
            self.leaderless[queue] = None
        else:
            sources = self.sendable.setdefault(queue.leader, {})
            sources.setdefault(queue.source.number, {})[queue] = None

    def _push(self, heap: list[tuple[int, int, PartitionQueue]], time_ns: int, queue: PartitionQueue) -> None:
        """At most one entry a queue and heap (``*_armed``); the push number orders equal times."""
        self._pushes += 1
        heapq.heappush(heap, (time_ns, self._pushes, queue))
        self.next_ns = min(self.next_ns, time_ns)
