"""slabpress's sides.

Settings: batches of a megabyte, as librdkafka's default is, one worker a core (the default), and the default memory.
"""

from __future__ import annotations

from typing import Any

from bench.job import BLOCK, Job
from bench.kinds import Records

BATCH_BYTES = 1_000_000
WHY = "batches as large as librdkafka's are by default; workers, memory and everything else are the defaults"


class Slabpress:
    """The producer; what differs is the call.

    Attributes:
        settings: as they are given to it.
    """

    def __init__(self, job: Job) -> None:
        from slabpress import Producer

        self.settings: dict[str, Any] = {
            "compression_type": job.codec,
            "compression_level": job.level,
            "acks": job.acks,
            "enable_idempotence": job.idempotent,
            "linger_ms": job.linger_ms,
            "batch_size": BATCH_BYTES,
            "buffer_memory": job.buffer_memory,
        }
        self._job = job
        self._producer = Producer(job.bootstrap_servers, **self.settings)

    def send(self, prepared: Any) -> int:
        """Send all; flush() raises what was not delivered."""
        count = self._accept(prepared)
        self._producer.flush()
        return count

    def close(self) -> None:
        """End the producer."""
        self._producer.close()

    def _accept(self, prepared: Any) -> int:
        raise NotImplementedError


class Send(Slabpress):
    """A call a record."""

    def prepare(self, records: Records) -> Any:
        """Values, or keys and values."""
        return list(zip(records.keys, records.values, strict=True)) if self._job.keyed else records.values

    def _accept(self, prepared: Any) -> int:
        send, topic = self._producer.send, self._job.topic
        if self._job.keyed:
            for key, value in prepared:
                send(topic, value, key=key)
        else:
            for value in prepared:
                send(topic, value)
        return len(prepared)


class SendMany(Slabpress):
    """A call a thousand records."""

    def prepare(self, records: Records) -> Any:
        """Blocks of keys and values."""
        return [
            (records.keys[start : start + BLOCK] if self._job.keyed else None, records.values[start : start + BLOCK])
            for start in range(0, len(records.values), BLOCK)
        ]

    def _accept(self, prepared: Any) -> int:
        send_many, topic = self._producer.send_many, self._job.topic
        count = 0
        for keys, values in prepared:
            send_many(topic, values, keys=keys)
            count += len(values)
        return count


class SendLines(Slabpress):
    """A call for all lines of one buffer; they have no keys."""

    def prepare(self, records: Records) -> Any:
        """The lines, and how many."""
        return b"\n".join(records.values) + b"\n", len(records.values)

    def _accept(self, prepared: Any) -> int:
        lines, count = prepared
        self._producer.send_lines(self._job.topic, lines)
        return int(count)
