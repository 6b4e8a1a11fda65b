"""The demo's other client: confluent-kafka creates the topic, and reads everything back."""

from __future__ import annotations

import importlib.util
import time
from typing import Any, Final

from slabpress.cli.compare import Checksum
from slabpress.cli.outcome import CommandError

_ADMIN_TIMEOUT_S: Final = 30.0
_SILENCE_S: Final = 30.0
_AT_ONCE: Final = 10_000


def check_installed() -> None:
    """Raise CommandError unless confluent-kafka is there."""
    if importlib.util.find_spec("confluent_kafka") is None:
        raise CommandError(
            "the demo reads back with confluent-kafka, which is not installed: `pip install 'slabpress[demo]'`"
        )


def create_topic(servers: str, topic: str, partitions: int, *, embedded: bool) -> None:
    """Create the demo's topic.

    Raises:
        CommandError: the cluster refused, or did not answer.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    # The embedded broker applies retention to what is read at once, by the records' timestamps.
    config = {"retention.ms": "-1"} if embedded else {}
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1 if embedded else -1, config=config)
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    try:
        admin.create_topics([new], operation_timeout=_ADMIN_TIMEOUT_S)[topic].result(_ADMIN_TIMEOUT_S)
    except (KafkaException, TimeoutError) as error:
        raise CommandError(f"topic {topic} could not be created at {servers}: {str(error) or 'no answer'}") from error


def read_back(servers: str, topic: str, partitions: int) -> Checksum:
    """Read all partitions from their first record to their end.

    Raises:
        CommandError: reading failed, or nothing came for half a minute.
    """
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"{topic}-reader",  # required by the library; nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "check.crcs": True,
            # The embedded broker answers with the whole rest of the log, whatever it is asked for.
            "receive.message.max.bytes": 1_000_000_000,
            "log_level": 2,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
        return _read_to_end(consumer, partitions)
    finally:
        consumer.close()


def _read_to_end(consumer: Any, partitions: int) -> Checksum:
    checksum = Checksum()
    open_partitions = set(range(partitions))
    heard = time.monotonic()
    while open_partitions:
        messages = consumer.consume(_AT_ONCE, 1.0)
        for message in messages:
            if message.error() is None:
                checksum.add(message.key(), message.value() or b"")
            else:
                open_partitions.discard(_ended_partition(message))
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > _SILENCE_S:
            raise CommandError(
                f"reading back: nothing came for {_SILENCE_S:.0f} s after {checksum.records} records; partitions "
                f"{sorted(open_partitions)} are not at their end"
            )
    return checksum


def _ended_partition(message: Any) -> int:
    from confluent_kafka import KafkaError

    if message.error().code() != KafkaError._PARTITION_EOF:
        raise CommandError(f"reading back failed: {message.error()}")
    return int(message.partition())
