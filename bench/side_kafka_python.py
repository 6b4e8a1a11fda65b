"""kafka-python's side."""

from __future__ import annotations

from typing import Any

from bench.job import Job, pairs
from bench.kinds import Records

FLUSH_S = 600
# Its documentation has no advice of its own on throughput. So what Confluent's says for the Java client, whose names
# and design this one follows: larger batches than the default 16 KiB; as large as the others' are. Its CRC is that of
# the package crc32c, which it takes where it is installed.
SETTINGS: dict[str, Any] = {"batch_size": 1_000_000}
WHY = "Confluent's advice for throughput, for Kafka's names: larger batches; and with the package crc32c"


class Send:
    """A call a record; there is no other.

    Attributes:
        settings: as they are given to it.
    """

    def __init__(self, job: Job) -> None:
        from kafka import KafkaProducer

        self.settings: dict[str, Any] = SETTINGS | {
            "compression_type": None if job.codec == "none" else job.codec,
            "acks": "all" if job.acks == "all" else int(job.acks),
            "enable_idempotence": job.idempotent,
            "linger_ms": job.linger_ms,
        }
        self._job = job
        self._producer: Any = KafkaProducer(bootstrap_servers=job.bootstrap_servers, **self.settings)

    def prepare(self, records: Records) -> Any:
        """Values, or keys and values."""
        return pairs(records, keyed=True) if self._job.keyed else records.values

    def send(self, prepared: Any) -> int:
        """Send all. flush() does not tell of records that failed; what the broker took does."""
        send, topic = self._producer.send, self._job.topic
        if self._job.keyed:
            for key, value in prepared:
                send(topic, value, key)
        else:
            for value in prepared:
                send(topic, value)
        self._producer.flush(FLUSH_S)
        return len(prepared)

    def close(self) -> None:
        """End the producer."""
        self._producer.close()
