"""What the tests of the command line share: running it, and looking into the broker with another client."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

DEADLINE_S: Final = 60.0
COMMAND: Final = (sys.executable, "-P", "-m", "slabpress")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    errors: list[str]


def slabpress(*arguments: str | Path, stdin: bytes = b"") -> Ended:
    """Run the command to its end."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=DEADLINE_S)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode().splitlines())


def start_slabpress(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start the command, with pipes for its input and outputs; use it in a ``with`` block and wait for its end."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until something is so; for what tells nobody when it changes."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.01)


class Record(NamedTuple):
    """A record as it was read."""

    partition: int
    key: bytes | None
    value: bytes | None


class Cluster(NamedTuple):
    """A broker, seen through confluent-kafka."""

    servers: str

    def new_topic(self, partitions: int = 1, **config: str) -> str:
        """Create a topic that no other test has."""
        name = f"cli-{uuid.uuid4().hex[:12]}"
        settings = {option.replace("_", "."): value for option, value in config.items()}
        admin = AdminClient({"bootstrap.servers": self.servers})
        created = admin.create_topics([NewTopic(name, partitions, 1, config=settings)])
        created[name].result(DEADLINE_S)
        return name

    def read(self, topic: str, partitions: int = 1, *, at_least: int = 0) -> list[Record]:
        """Everything in a topic; with ``at_least`` it waits until there is so much."""
        consumer = Consumer(
            {"bootstrap.servers": self.servers, "group.id": topic, "enable.partition.eof": True, "check.crcs": True}
        )
        try:
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
            return _read(consumer, partitions, at_least)
        finally:
            consumer.close()


def _read(consumer: Consumer, partitions: int, at_least: int) -> list[Record]:
    found: list[Record] = []
    ended: set[int] = set()
    deadline = time.monotonic() + DEADLINE_S
    while len(ended) < partitions or len(found) < at_least:
        assert time.monotonic() < deadline, f"{len(found)} records of {at_least}, partitions {ended} at their end"
        for message in consumer.consume(1000, 0.2):
            error = message.error()
            if error is None:
                found.append(Record(message.partition() or 0, message.key(), message.value()))
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition() or 0)
    return found
