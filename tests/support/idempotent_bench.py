"""One idempotent producer without processes, sockets or time: its arena, workers, network process, and the brokers.

What becomes of every request, answer and connection, and when a process dies, the test says. In the place of sockets
and brokers is ``ModelCluster``; the processes' own code is real.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from slabpress.results import DELIVERED, EXPIRED_UNSENT
from slabpress.shm import layout as at
from slabpress.shm.states import UNDER_WAY
from tests.shm.faults import Killed
from tests.support.model_cluster import ModelCluster
from tests.support.network_life import DELIVERY_TIMEOUT_MS, EVER, NetworkLife, Wire
from tests.support.split_bench import ROUNDS_MOST, SplitBench, split_bench

MS: Final = 1_000_000


class IdempotentBench:
    """The producer, and the brokers.

    Args:
        bench: the arena with its coordinator and workers.
        cluster: the brokers.
    """

    def __init__(self, bench: SplitBench, cluster: ModelCluster) -> None:
        self.bench = bench
        self.cluster = cluster
        self.now = 0
        self.producer_ids = 1
        self._healthy = [0] * len(cluster.logs)
        self.network: NetworkLife | None = NetworkLife(bench, EVER)
        self._set_now(1)

    def _set_now(self, now: int) -> None:
        self.now = self.bench.now = now

    def start_at(self, sequence: int, epoch: int) -> None:
        """Let every partition be as after a long life."""
        memory, layout = self.bench.arena.memory, self.bench.arena.layout
        for partition in range(len(self.cluster.logs)):
            start = layout.partitions + partition * at.PARTITION_BYTES
            memory.store_u64(start + at.PRODUCER_ID_AT, self.producer_ids)
            memory.store_u64(start + at.PRODUCER_EPOCH_AT, sequence << 32 | epoch)
        memory.store_u64(at.PRODUCER_ID_PLUS_ONE_AT, self.producer_ids + 1)

    # The network process.

    def doing(self, action: Callable[[NetworkLife], object]) -> None:
        """The network process does something, or dies in the middle of it."""
        if self.network is None:
            return
        try:
            action(self.network)
        except Killed:
            self.network_dies([len(wire.requests) for wire in self.network.wires.values()])

    def network_dies(self, survive: Sequence[int]) -> None:
        """The kernel closes its connections; of each so many requests survive."""
        if self.network is None:
            return
        for (node, wire), count in zip(self.network.wires.items(), survive, strict=True):
            self._leave_zombies(node, wire, count)
        self.network.end()
        self.network = None

    def succeed(self, changes: int = EVER) -> None:
        """Another network process takes over."""
        if self.network is None:
            self.network = NetworkLife(self.bench, changes)
            self.doing(lambda network: network.batches.take_over())

    def look(self) -> None:
        """The network process looks at what has changed."""
        self.producer_ids += 1
        leaders = [log.leader for log in self.cluster.logs]
        self.doing(lambda network: network.look(leaders, self.producer_ids, self.now))

    def send(self, node: int) -> None:
        """It sends what it can to one broker, in one request."""
        self.look()
        self.doing(lambda network: network.send(node, self.now))

    def learn(self, partition: int, leader: int | None) -> None:
        """It hears who leads a partition."""
        if self.network is not None and (queue := self.network.batches.queues[partition]) is not None:
            self.doing(lambda network: network.queues.set_leader(queue, leader, self.now))

    def hear(self, node: int) -> None:
        """It takes a broker's next answer."""
        wire = self._wire(node)
        if wire is not None and wire.answers:
            self.doing(lambda network: network.hear(node, self.now))

    def cut(self, node: int, survive: int) -> None:
        """It closes a connection; so many of the requests that the broker did not process yet survive."""
        wire = self._wire(node)
        if wire is not None:
            self._leave_zombies(node, wire, survive)
            self.doing(lambda network: network.lose(node, self.now))

    def target(self, partition: int) -> int:
        """The broker that the network process takes for a partition's leader; the leader if it knows none."""
        queue = None if self.network is None else self.network.batches.queues[partition]
        leader = None if queue is None else queue.leader
        return self.cluster.logs[partition].leader if leader is None else leader

    def _wire(self, node: int) -> Wire | None:
        return None if self.network is None else self.network.wires.get(node)

    def _leave_zombies(self, node: int, wire: Wire, survive: int) -> None:
        surviving = list(wire.requests)[:survive]
        wire.requests.clear()
        if surviving:
            self.cluster.zombies.append((node, deque(surviving)))

    # The brokers.

    def process(self, node: int, faults: Sequence[int]) -> None:
        """A broker processes the next request of its connection."""
        wire = self._wire(node)
        if wire is not None and wire.requests:
            request = wire.requests.popleft()
            wire.answer(request.correlation_id, self.cluster.process(node, request, faults))

    # Everybody.

    def work(self) -> None:
        """The workers and the coordinator do what there is to do."""
        for worker in self.bench.workers:
            while worker.work():
                pass
        self.bench.take_results()

    def pass_time(self, milliseconds: int) -> None:
        """Let the time pass."""
        self._set_now(self.now + milliseconds * MS)
        self.look()

    def pass_time_until_one_expires(self) -> None:
        """Let the time pass until the delivery timeout of the oldest batch without a result ends."""
        states, sealed = self.bench.arena.batch_states, self.bench.descriptors.sealed
        under_way = [index for state in UNDER_WAY for index in states.find_all(state)]
        created = min((sealed(index).created_ns for index in under_way), default=self.now)
        until = created + DELIVERY_TIMEOUT_MS * MS
        self._set_now(max(self.now, until))
        self.look()

    def a_day_passes(self) -> None:
        """Let so much time pass that brokers forget; no request lives as long."""
        for node in self.cluster.brokers:
            self.cut(node, 0)
        self.cluster.a_day_passes()
        self.pass_time(86_400_000)

    @property
    def batches_under_way(self) -> int:
        """How many batches have no result."""
        return sum(len(self.bench.arena.batch_states.find_all(state)) for state in UNDER_WAY)

    def round_trip(self) -> None:
        """Everybody does once what there is to do, and nothing fails."""
        self.work()
        for node in self.cluster.brokers:
            self.send(node)
            self.process(node, self._healthy)
            self.hear(node)
        self.work()

    def drain(self) -> None:
        """Nothing fails any more, until nothing is left to do."""
        while self.cluster.zombies:
            self.cluster.process_zombie(0, self._healthy)
        for _ in range(ROUNDS_MOST):
            self.succeed()
            self.round_trip()
            if not self.batches_under_way:
                return
            for partition, log in enumerate(self.cluster.logs):
                self.learn(partition, log.leader)
            self.pass_time(5)
        raise AssertionError(f"there is still something to do after {ROUNDS_MOST} rounds")

    # What must hold in the end.

    def check(self, delivered_from: int) -> None:
        """Every record has one result, which is true; each log has each record at most once, in the order of sealing.

        Batches from the seal number ``delivered_from`` on must have been delivered.
        """
        self.bench.check_all_free()
        order: dict[bytes | None, int] = {value: place for place, value in enumerate(self._sealed_values())}
        for log in self.cluster.logs:
            places = [order[value] for value in log.values]
            assert places == sorted(set(places)), f"the log has {log.values}"
        for number, values in self.bench.sealed.items():
            log_values = self.cluster.logs[self.bench.partition_of[number]].values
            told_of = 0
            for first, records, result in self.bench.told[number]:
                assert first == told_of, f"batch {number}: records from {told_of} on have no result, or two"
                told_of += records
                if result.code == DELIVERED:
                    found = log_values[result.base_offset : result.base_offset + records]
                    assert found == values[first:told_of], f"batch {number} is not at {result.base_offset}"
                elif result.code == EXPIRED_UNSENT:
                    assert not set(values[first:told_of]) & set(log_values), f"batch {number} was sent"
                assert number < delivered_from or result.code == DELIVERED, f"batch {number}: {result}"
            assert told_of == len(values), f"batch {number}: {told_of} of {len(values)} records have a result"

    def _sealed_values(self) -> list[bytes]:
        return [value for _, values in sorted(self.bench.sealed.items()) for value in values]

    def close(self) -> None:
        """Let go of the arena."""
        if self.network is not None:
            self.network.end()
            self.network = None


@contextlib.contextmanager
def idempotent_bench(
    *,
    batch_bytes: int = 1 << 20,
    brokers: int = 3,
    partitions: int = 2,
    workers: int = 1,
    fierce: bool = False,
    direct: bool = False,
) -> Iterator[IdempotentBench]:
    """A bench on a small arena, closed at the end."""
    # Of as many batches in either kind: what is sent from its slabs holds them for as long as others hold buffers.
    slabs, outputs = (44, 4) if direct else (24, 24)
    with split_bench(
        0,
        workers=workers,
        slab_bytes=64,
        slabs=slabs,
        outputs=outputs,
        split_outputs=4,
        partitions=partitions,
        direct=direct,
    ) as bench:
        made = IdempotentBench(bench, ModelCluster(brokers, partitions, batch_bytes, fierce=fierce))
        try:
            yield made
        finally:
            made.close()
