"""What a side of the throughput comparison is asked to do, what it is, and what it says afterwards."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from bench.kinds import Records

BLOCK = 1000


class Job(NamedTuple):
    """What a side is asked to do.

    Attributes:
        side: its name in the tables.
        codec: none, gzip, snappy, lz4 or zstd.
        level: the codec's level; None: the client's default.
        records: how many are measured.
        warm_up: how many are sent, and acknowledged, before.
        data: the file with the distinct records (bench/kinds.py).
        keyed: whether they are sent with their keys.
        partitions: of the topic.
        bootstrap_servers: the broker.
        topic: where to send.
        acks: all or 1.
        idempotent: whether the producer is.
        linger_ms: how long a batch may wait for more.
        buffer_memory: slabpress's setting.
    """

    side: str
    codec: str
    level: int | None
    records: int
    warm_up: int
    data: str
    keyed: bool
    partitions: int
    bootstrap_servers: str
    topic: str
    acks: str
    idempotent: bool
    linger_ms: int
    buffer_memory: str


class Client(Protocol):
    """A producer and one way to use it."""

    settings: dict[str, Any]

    def prepare(self, records: Records) -> Any:
        """Bring records into the shape in which they are sent; no clock runs."""

    def send(self, prepared: Any) -> int:
        """Send all and wait for the last acknowledgement.

        Returns:
            How many records the client says were acknowledged.
        """

    def close(self) -> None:
        """End the producer."""


def pairs(records: Records, *, keyed: bool) -> list[tuple[bytes | None, bytes]]:
    """Keys and values for a loop; no key has one if they are not asked for."""
    return list(zip(records.keys if keyed else [None] * len(records.values), records.values, strict=True))
