"""The rounds of the throughput comparison: every side at every point in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import kinds
from bench.job import Job
from bench.peers import Peer
from bench.points import Point
from bench.throughput_brokers import OPEN, Arrived, Broker
from tests.support.kafka_install import spawn

DEADLINE_S = 300
STDERR_BYTES = 2000


class Plan(NamedTuple):
    """What does not change from point to point.

    Attributes:
        rounds: how often each side is measured at each point.
        records: how many of a run; None: by megabytes.
        megabytes: of values of a run.
        warm_up: the share of a run's records that is sent before the clock runs.
        acks: all or 1.
        idempotent: of every side that can be.
        linger_ms: of every side.
        buffer_memory: slabpress's.
    """

    rounds: int
    records: int | None
    megabytes: float
    warm_up: float
    acks: str
    idempotent: bool
    linger_ms: int
    buffer_memory: str


class LostError(Exception):
    """A side did not deliver what it was given: its time is no figure."""


class Data(NamedTuple):
    """The distinct records of one kind, in a file.

    Attributes:
        path: where they are.
        distinct: how many.
        value_bytes: of all of them.
    """

    path: Path
    distinct: int
    value_bytes: int

    def records_of(self, plan: Plan, share: float) -> int:
        """How many records a run has, for a side that sends this share of them."""
        whole = plan.records or round(plan.megabytes * 1e6 * self.distinct / self.value_bytes)
        return max(1, round(whole * share))


def check(said: dict[str, Any], arrived: Arrived, sent: int) -> None:
    """Hold what the client said and what the broker took against what was sent.

    Raises:
        LostError: they differ.
    """
    if said["acknowledged"] != sent or arrived.records != sent:
        raise LostError(
            f"{sent} records were sent, {said['acknowledged']} acknowledged, and the broker took {arrived.records}: "
            "this is no figure"
        )


def run_side(job: Job, command: Sequence[str]) -> dict[str, Any]:
    """Run one side once, in its own process.

    Raises:
        LostError: it failed, or did not end.
    """
    with tempfile.TemporaryFile() as errors:
        process = spawn(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            out, _ = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise LostError(f"{job.side} did not end within {DEADLINE_S} s") from None
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            text = errors.read()[-STDERR_BYTES:].decode(errors="replace")
            raise LostError(f"{job.side} ended with {process.returncode}: {text}")
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


class Comparison:
    """Brokers and data, made when they are needed first and kept until the end.

    Args:
        plan: what is the same everywhere.
        peers: the sides, by name.
        say: told of each run.
    """

    def __init__(self, plan: Plan, peers: dict[str, Peer], say: Callable[[str], None]) -> None:
        self._plan = plan
        self._peers = peers
        self._say = say
        self._stack = contextlib.ExitStack()
        self._brokers: dict[str, Broker] = {}
        self._data: dict[str, Data] = {}
        self._topics = 0
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="slabpress-throughput-")))

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def rounds(self, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
        """A sample of every side at every point, round by round: a noisy minute is shared by all."""
        for number in range(self._plan.rounds):
            for point in points:
                for name, peer in self._peers.items():
                    if peer.refuses(point) is None:
                        yield self._sample(number, point, name, peer)

    def data(self, kind: str) -> Data:
        """The records of a kind."""
        if kind not in self._data:
            records, path = kinds.make(kind), self._folder / kind
            kinds.write(records, path)
            self._data[kind] = Data(path, len(records.values), records.value_bytes)
        return self._data[kind]

    def _broker(self, kind: str) -> Broker:
        if kind not in self._brokers:
            self._brokers[kind] = self._stack.enter_context(OPEN[kind]())
        return self._brokers[kind]

    def _sample(self, number: int, point: Point, name: str, peer: Peer) -> dict[str, Any]:
        data, broker, plan = self.data(point.data), self._broker(point.broker), self._plan
        self._topics += 1
        records = data.records_of(plan, peer.share)
        job = Job(
            side=name,
            codec=point.codec_name,
            level=point.level,
            records=records,
            warm_up=max(1, round(records * max(plan.warm_up, peer.warm_up))),
            data=str(data.path),
            keyed=point.keyed,
            partitions=point.partitions,
            bootstrap_servers=broker.bootstrap_servers,
            topic=f"bench-{self._topics}",
            acks=plan.acks,
            idempotent=plan.idempotent,
            linger_ms=plan.linger_ms,
            buffer_memory=plan.buffer_memory,
        )
        broker.create_topic(job.topic, job.partitions)
        said = run_side(job, peer.command(job))
        arrived = broker.arrived(job.topic, job.partitions)
        try:
            check(said, arrived, job.warm_up + job.records)
        except LostError as error:
            raise LostError(f"{name} at {point}: {error}") from None
        megabytes = records * data.value_bytes / data.distinct / 1e6
        self._say(f"  {number + 1}: {name}, {point.codec}: {megabytes / said['seconds']:.0f} MB/s")
        sample = {"round": number, "point": point._asdict(), "side": name, "records": records, "megabytes": megabytes}
        sample |= {"warm_up": job.warm_up} | said | {"arrived": arrived._asdict()}
        return sample | ({} if peer.settings is None else {"settings": peer.settings(job)})
