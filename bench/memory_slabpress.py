"""slabpress's side of the memory experiment: one Pipeline for all producers, and its laws looked at while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.memory_messages import Job
from bench.memory_tally import Client, Drive, Tally, run_threads

WORKERS = 2
LINGER_MS = 5
VIOLATIONS_KEPT = 10


class Slabpress(Client):
    """One slabpress.Pipeline with as many producers as the job asks for."""

    def __init__(self, job: Job, tally: Tally) -> None:
        import slabpress

        cluster: dict[str, Any] = {
            "workers": WORKERS,
            "max_in_flight_requests_per_connection": 1,
            "request_timeout_ms": job.patience_ms,
        }
        each: dict[str, Any] = {
            "buffer_memory": job.buffer_bytes,
            "compression_type": job.codec,
            "acks": "all",
            "linger_ms": LINGER_MS,
            "delivery_timeout_ms": 2 * job.patience_ms,
            "max_block_ms": 2 * job.patience_ms,
        }
        self._pipeline = slabpress.Pipeline(job.bootstrap_servers, **cluster)
        self._producers = [self._pipeline.producer(**each) for _ in range(job.producers)]
        self.settings = cluster | each
        self._planned_bytes = self._pipeline.plan.total_bytes  # of now: it falls when producers are closed
        self._tally, self._topic = tally, job.topic
        self._conservation = Conservation(self._producers, tally)

    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send from one thread a producer."""
        topic = self._topic
        sends = [producer.send for producer in self._producers]
        # Bound once: a callback of its own for every record would be this program's memory, not the client's.
        reports = [self._report(index) for index in range(len(sends))]

        def send(index: int, value: bytes) -> bool:
            sends[index](topic, value, on_delivery=reports[index])
            return True

        with self._pipeline:
            run_threads(Drive(send, lambda index: self._producers[index].flush()), self._tally, messages, stopping)
            self._conservation.look(at_rest=True)

    def observe(self) -> dict[str, Any]:
        """The plan, and whether the laws of conservation held until now."""
        self._conservation.look()
        checks, violations = self._conservation.checks, self._conservation.violations
        return {"planned": self._planned_bytes, "checks": checks, "violations": violations[:VIOLATIONS_KEPT]}

    def _report(self, index: int) -> Callable[[Any], None]:
        def report(handle: Any) -> None:
            self._tally.resolve(index, handle.exception(0))

        return report


class Conservation:
    """Looks whether records, slabs, output buffers and batches add up, producer by producer.

    Attributes:
        checks: how many producers have been looked at, all rounds together.
        violations: what did not add up.
    """

    def __init__(self, producers: list[Any], tally: Tally) -> None:
        self.checks = 0
        self.violations: list[str] = []
        self._producers = producers
        self._tally = tally
        self._looking = threading.Lock()

    def look(self, *, at_rest: bool = False) -> None:
        """Look at every producer once; ``at_rest`` is after a flush, when nothing may be under way."""
        with self._looking:
            for index, producer in enumerate(self._producers):
                self.checks += 1
                self.violations += [f"producer {index}: {text}" for text in self._violations(index, producer, at_rest)]

    def _violations(self, index: int, producer: Any, at_rest: bool) -> Iterator[str]:  # noqa: FBT001
        tally = self._tally
        # The tally runs on meanwhile, so the producer's own figures have to lie between two readings of it.
        least, resolved = tally.accepted[index], tally.acked[index] + tally.failed[index]
        stats = producer.stats()
        most = tally.accepted[index] + 1  # one record may be between the two counters
        delivered, failed, pending = stats.records_delivered, stats.records_failed, stats.records_pending
        if stats.records_accepted != delivered + failed + pending or pending < 0:
            yield f"accepted {stats.records_accepted} != {delivered} delivered + {failed} failed + {pending} pending"
        if not least <= stats.records_accepted <= most:
            yield f"{stats.records_accepted} records accepted, not between {least} and {most}"
        if delivered + failed < resolved:
            yield f"{delivered} + {failed} records resolved, but {resolved} were reported"
        geometry = producer.plan.geometry
        yield from _table("slabs", stats.slabs, geometry.slab_count, at_rest)
        yield from _table("output buffers", stats.output_buffers, geometry.output_count, at_rest)
        yield from _table("batches", stats.batches, geometry.batch_count, at_rest)
        if at_rest and pending:
            yield f"{pending} records pending after a flush"


def _table(name: str, states: Mapping[str, int], count: int, at_rest: bool) -> Iterator[str]:  # noqa: FBT001
    if sum(states.values()) != count or min(states.values()) < 0:
        yield f"{name}: {dict(states)} do not add up to {count}"
    if at_rest and states["free"] != count:
        yield f"{name}: {dict(states)} are not all free after a flush"
