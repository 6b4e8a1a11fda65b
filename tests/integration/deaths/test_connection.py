"""Connections that break and answers that get lost: what was appended already is not appended again."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.integration.conftest import MakeProducer
from tests.integration.deaths.records import check, read_and_count
from tests.integration.deaths.sending import LogEnd, Stream
from tests.integration.pipeline.looks import until
from tests.support.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

SETTINGS: Final[dict[str, Any]] = {"workers": 1, "linger_ms": 0, "reconnect_backoff_max_ms": 100}


def lose_acknowledgements(kafka: KafkaCluster, topic: str, stream: Stream) -> None:
    """Send while every answer is swallowed, until the broker has appended; then break the connection."""
    proxy = kafka.proxies[1]
    stream.send(1)
    stream.producer.flush()
    with LogEnd(kafka.bootstrap_servers, topic) as log_end:
        before = log_end()
        proxy.down.swallow = True
        try:
            stream.send(50)
            until(lambda: log_end() > before, "the broker to append what it cannot acknowledge")
        finally:
            proxy.stop_swallowing()
    stream.producer.flush(60)


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_lost_acknowledgements_and_then_a_cut(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer, codec: str
) -> None:
    kafka_behind_proxy.create_topic(topic)
    producer = make_producer(kafka_behind_proxy.proxied_bootstrap_servers, compression_type=codec, **SETTINGS)
    stream = Stream(producer, topic)
    for _ in range(3):
        lose_acknowledgements(kafka_behind_proxy, topic, stream)
    assert check(kafka_behind_proxy, topic, stream.accepted) == 3 * 51
    assert producer.stats().network["retries"] >= 3


def test_lost_acknowledgements_without_idempotence_double_what_was_appended(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    kafka_behind_proxy.create_topic(topic)
    servers = kafka_behind_proxy.proxied_bootstrap_servers
    stream = Stream(make_producer(servers, enable_idempotence=False, **SETTINGS), topic)
    lose_acknowledgements(kafka_behind_proxy, topic, stream)
    found = read_and_count(kafka_behind_proxy, topic, stream.accepted)
    assert (found.records, found.lost) == (51, 0)
    assert found.doubled > 0


def test_lost_acknowledgements_until_the_request_timeout(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    """Nobody breaks the connection but the producer itself, before it sends anything again."""
    kafka, proxy = kafka_behind_proxy, kafka_behind_proxy.proxies[1]
    kafka.create_topic(topic)
    # What the next connection asks first may be swallowed, too.
    quick = {"request_timeout_ms": 1000, "socket_connection_setup_timeout_ms": 1000}
    producer = make_producer(kafka.proxied_bootstrap_servers, **quick, **SETTINGS)
    stream = Stream(producer, topic)
    stream.send(1)
    producer.flush()
    connections = proxy.connections
    proxy.down.swallow = True
    try:
        stream.send(50)
        until(lambda: proxy.connections > connections, "the connection to be given up")
    finally:
        proxy.down.swallow = False
    producer.flush(60)
    assert check(kafka, topic, stream.accepted) == 51


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_amid_a(
    kafka_behind_proxy: KafkaCluster, topic: str, make_producer: MakeProducer, direction: str
) -> None:
    """Up: within a request of some 100 KB. Down: within an answer of some 50 bytes, when all of it is appended."""
    kafka, proxy = kafka_behind_proxy, kafka_behind_proxy.proxies[1]
    kafka.create_topic(topic)
    # What is cut in two is what was written: a request of all its bytes.
    producer = make_producer(kafka.proxied_bootstrap_servers, compression_type="none", **SETTINGS)
    stream = Stream(producer, topic, filling=b"x" * 1000)
    stream.send(1)
    producer.flush()
    for step in range(1, 9):
        connections = proxy.connections
        proxy.cut_after(step * 13_000 if direction == "up" else step * 3, "up" if direction == "up" else "down")
        stream.send(110)
        producer.flush(60)
        assert proxy.connections > connections
    assert check(kafka, topic, stream.accepted) == stream.sent
