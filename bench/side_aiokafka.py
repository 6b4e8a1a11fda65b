"""aiokafka's side: whole batches, its way for throughput ("Batching messages" in its documentation of the producer)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from bench.job import Job, pairs
from bench.kinds import Records

# Of the settings only max_batch_size is about throughput; as for kafka-python.
SETTINGS: dict[str, Any] = {"max_batch_size": 1_000_000}
REQUEST_TIMEOUT_MS = 300_000  # also how long a batch may wait for the one before it
WHY = "its documentation, Batching messages: create_batch() and send_batch(); batches as for kafka-python"


class SendBatch:
    """Fill a batch, hand it over when it is full.

    Attributes:
        settings: as they are given to it.
    """

    def __init__(self, job: Job) -> None:
        import aiokafka
        from aiokafka.partitioner import DefaultPartitioner

        self.settings: dict[str, Any] = SETTINGS | {
            "compression_type": None if job.codec == "none" else job.codec,
            "acks": "all" if job.acks == "all" else int(job.acks),
            "enable_idempotence": job.idempotent,
            "linger_ms": job.linger_ms,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        self._job = job
        self._partitions = list(range(job.partitions))
        self._partition_of: Any = DefaultPartitioner()
        self._loop = asyncio.new_event_loop()
        self._producer: Any = self._loop.run_until_complete(self._start(aiokafka))

    def prepare(self, records: Records) -> Any:
        """Keys and values."""
        return pairs(records, keyed=self._job.keyed)

    def send(self, prepared: Any) -> int:
        """Send all; a batch that failed raises."""
        return self._loop.run_until_complete(self._send(prepared))

    def close(self) -> None:
        """End the producer and its loop."""
        self._loop.run_until_complete(self._producer.stop())
        self._loop.close()

    async def _start(self, aiokafka: Any) -> Any:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self._job.bootstrap_servers, **self.settings)
        await producer.start()
        return producer

    async def _send(self, prepared: list[tuple[bytes | None, bytes]]) -> int:
        futures = []
        for partition, batch in self._keyed(prepared) if self._job.keyed else self._unkeyed(prepared):
            futures.append(await self._producer.send_batch(batch, self._job.topic, partition=partition))
        await asyncio.gather(*futures)
        return len(prepared)

    def _unkeyed(self, prepared: list[tuple[bytes | None, bytes]]) -> Iterator[tuple[int, Any]]:
        """Full batches, one partition after the other."""
        batch, partition = self._producer.create_batch(), 0
        for _, value in prepared:
            if batch.append(key=None, value=value, timestamp=None) is None:
                yield partition, batch
                batch, partition = self._producer.create_batch(), (partition + 1) % len(self._partitions)
                batch.append(key=None, value=value, timestamp=None)
        yield partition, batch

    def _keyed(self, prepared: list[tuple[bytes | None, bytes]]) -> Iterator[tuple[int, Any]]:
        """A batch a partition, by the client's own partitioner."""
        batches: dict[int, Any] = {}
        for key, value in prepared:
            partition = self._partition_of(key, self._partitions, self._partitions)
            batch = batches.get(partition) or batches.setdefault(partition, self._producer.create_batch())
            if batch.append(key=key, value=value, timestamp=None) is None:
                yield partition, batch
                batches[partition] = self._producer.create_batch()
                batches[partition].append(key=key, value=value, timestamp=None)
        yield from batches.items()
