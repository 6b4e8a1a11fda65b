"""Batches as slabpress seals them, for whoever measures what comes after that."""

from __future__ import annotations

import contextlib
from typing import Any

from bench.append import PARTITIONS, TOPIC
from bench.childless import ChildlessProducer
from slabpress.errors import FlushTimeoutError
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import SEALED


def sealed_batches(values: list[bytes], value_bytes: int, **settings: Any) -> list[bytes]:
    """Uncompressed batches of these values, without a worker to take them.

    Args:
        values: one a record.
        value_bytes: of all values; the arena is six times as large, so that they fit in it.
        settings: a producer's, codec and ``batch_size``.
    """
    producer = ChildlessProducer("nowhere:9092", buffer_memory=6 * value_bytes, workers=1, linger_ms=60_000, **settings)
    try:
        producer.know_topic(TOPIC, PARTITIONS)
        producer.send_many(TOPIC, values)
        arena = producer._session.arena
        descriptors = Descriptors(arena)
        sealed = [descriptors.sealed(index) for index in arena.batch_states.find_all(SEALED)]
        return [b"".join(arena.slabs.views(batch.first_slab, batch.raw_bytes)) for batch in sealed]
    finally:
        with contextlib.suppress(FlushTimeoutError):  # nobody was to deliver them
            producer.close(0)
