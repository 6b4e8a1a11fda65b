"""confluent-kafka's sides (librdkafka)."""

from __future__ import annotations

from typing import Any

from bench.job import BLOCK, Job, pairs
from bench.kinds import Records

FLUSH_S = 300
# https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md: batch.size and queue.buffering.max.kbytes are
# the defaults; batch.num.messages and queue.buffering.max.messages are raised above theirs (10,000 and 100,000), so
# that small records fill a batch and the queue is never the limit, as INTRODUCTION.md ("High throughput") advises; and
# nobody asks for reports of what went well.
SETTINGS: dict[str, Any] = {
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
    "queue.buffering.max.messages": 2_000_000,
    "queue.buffering.max.kbytes": 1_048_576,
    "delivery.report.only.error": True,
}
WHY = "librdkafka's CONFIGURATION.md and INTRODUCTION.md, High throughput: large batches, a queue that is no limit"


class Confluent:
    """The producer; what differs is the call.

    Attributes:
        settings: as they are given to it.
    """

    def __init__(self, job: Job) -> None:
        from confluent_kafka import Producer

        self.settings: dict[str, Any] = SETTINGS | {
            "compression.type": job.codec,
            "acks": job.acks,
            "enable.idempotence": job.idempotent,
            "linger.ms": job.linger_ms,
        }
        if job.level is not None:
            self.settings["compression.level"] = job.level
        self._job = job
        self._failed = 0
        servers = {"bootstrap.servers": job.bootstrap_servers}
        self._producer = Producer(servers | self.settings | {"on_delivery": self._report})

    def send(self, prepared: Any) -> int:
        """Send all, and count what failed or was left."""
        failed = self._failed
        count = self._accept(prepared)
        left = self._producer.flush(FLUSH_S)
        return int(count - left - (self._failed - failed))

    def close(self) -> None:
        """End the producer: it is empty."""

    def _report(self, error: Any, _: Any) -> None:
        self._failed += error is not None

    def _accept(self, prepared: Any) -> int:
        raise NotImplementedError


class Produce(Confluent):
    """A call a record."""

    def prepare(self, records: Records) -> Any:
        """Blocks of values, or of keys and values."""
        items: list[Any] = pairs(records, keyed=True) if self._job.keyed else list(records.values)
        return [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]

    def _accept(self, prepared: Any) -> int:
        one = self._keyed if self._job.keyed else self._unkeyed
        for block in prepared:
            one(block)
            self._producer.poll(0)
        return sum(map(len, prepared))

    def _unkeyed(self, block: list[bytes]) -> None:
        produce, topic = self._producer.produce, self._job.topic
        for value in block:
            while True:
                try:
                    produce(topic, value)
                    break
                except BufferError:
                    self._producer.poll(0.01)

    def _keyed(self, block: list[tuple[bytes | None, bytes]]) -> None:
        produce, topic = self._producer.produce, self._job.topic
        for key, value in block:
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    self._producer.poll(0.01)


class ProduceBatch(Confluent):
    """A call a thousand records."""

    def prepare(self, records: Records) -> Any:
        """Blocks of dicts, which the call wants. Making them is not measured, which favours it."""
        keyed = self._job.keyed
        messages = [
            {"value": value, "key": key} if keyed else {"value": value}
            for key, value in zip(records.keys, records.values, strict=True)
        ]
        return [messages[start : start + BLOCK] for start in range(0, len(messages), BLOCK)]

    def _accept(self, prepared: Any) -> int:
        for block in prepared:
            waiting = block
            while self._producer.produce_batch(self._job.topic, waiting) < len(waiting):
                waiting = [message for message in waiting if message.pop("_error", None) is not None]
                self._producer.poll(0.01)
            self._producer.poll(0)
        return sum(map(len, prepared))
