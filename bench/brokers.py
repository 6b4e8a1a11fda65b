"""The broker that a benchmark sends to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.sink import Sink
from tests.support.kafka import KafkaCluster

SINK: Final = "sink"
KAFKA: Final = "kafka"
HELP: Final = "'sink', a stand-in that acknowledges at once; 'kafka', a real one, started here; or HOST:PORT"
_CREATE_TIMEOUT_S: Final = 30.0


@contextlib.contextmanager
def broker(kind: str, topics: dict[str, int]) -> Iterator[str]:
    """Bootstrap servers that have these topics, with so many partitions each."""
    if kind == SINK:
        with Sink() as sink:
            for topic, partitions in topics.items():
                sink.create_topic(topic, partitions)
            yield sink.bootstrap_servers
    elif kind == KAFKA:
        with KafkaCluster() as cluster:
            for topic, partitions in topics.items():
                cluster.create_topic(topic, partitions)
            yield cluster.bootstrap_servers
    else:
        made = AdminClient({"bootstrap.servers": kind}).create_topics(
            [NewTopic(topic, num_partitions=partitions) for topic, partitions in topics.items()]
        )
        for future in made.values():
            with contextlib.suppress(Exception):  # it may be there already; if it is not, sending says so
                future.result(_CREATE_TIMEOUT_S)
        yield kind
