"""Bad input gets an error that names the thing, the number and the limit; and the next record goes through."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slabpress import (
    BootstrapError,
    ConfigError,
    MemoryShortError,
    Producer,
    ProducerClosedError,
    RecordTooLargeError,
    RecordTypeError,
    RecordValueError,
    TopicNameError,
    UnknownPartitionError,
    UnknownTopicError,
)
from tests.integration.conftest import MakeProducer
from tests.support.brokers import require_kafka
from tests.support.kafka import KafkaCluster, read_back

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def strict_kafka() -> Iterator[KafkaCluster]:
    """A broker that does not create topics by itself."""
    require_kafka()
    with KafkaCluster(config={"auto.create.topics.enable": "false"}) as cluster:
        cluster.create_topic("here", 3)
        yield cluster


@pytest.fixture(scope="module")
def producer(strict_kafka: KafkaCluster) -> Iterator[Producer]:
    """One producer for the whole module: every refusal must leave it working for the next."""
    with Producer(strict_kafka.bootstrap_servers, workers=1, max_block_ms=1500, buffer_memory="4MiB") as made:
        made.flush()  # has the thread started that takes results in: it is the fixture's, and of no test
        yield made


REFUSED: list[tuple[type[Exception], str, Callable[[Any], Any]]] = [
    (
        UnknownTopicError,
        r"topic 'nowhere' is not known .* max_block_ms=1500 \(it said: UNKNOWN_TOPIC_OR_PARTITION\): create it",
        lambda p: p.send("nowhere", b"x"),
    ),
    (
        UnknownPartitionError,
        r"topic 'here' has no partition 3: it has 3, 0 \.\. 2",
        lambda p: p.send("here", b"x", partition=3),
    ),
    (UnknownPartitionError, r"has no partition -1", lambda p: p.send("here", b"x", partition=-1)),
    (RecordTypeError, r"partition must be an int or None, not str", lambda p: p.send("here", b"x", partition="1")),
    (RecordTypeError, r"value must be bytes, .* not dict: serialize it first", lambda p: p.send("here", {})),
    (RecordTypeError, r"key must be bytes, .* not int: serialize it first", lambda p: p.send("here", b"x", key=7)),
    (
        RecordTypeError,
        r"headers must be a sequence of \(name, value\) pairs, not dict",
        lambda p: p.send("here", b"x", headers={"a": b"b"}),
    ),
    (
        RecordTypeError,
        r"a header must be a \(name, value\) pair",
        lambda p: p.send("here", b"x", headers=[("a", b"b", b"c")]),
    ),
    (
        RecordTypeError,
        r"a header's name must be str or bytes, not int",
        lambda p: p.send("here", b"x", headers=[(1, b"b")]),
    ),
    (
        RecordTypeError,
        r"the value of header b'a' must be bytes, .* not float",
        lambda p: p.send("here", b"x", headers=[("a", 1.5)]),
    ),
    (RecordTypeError, r"timestamp_ms must be an int .* not float", lambda p: p.send("here", b"x", timestamp_ms=1.5)),
    (RecordValueError, r"timestamp_ms is -5, outside 0 ", lambda p: p.send("here", b"x", timestamp_ms=-5)),
    (RecordValueError, r"value is a str that UTF-8 cannot encode", lambda p: p.send("here", "\ud800")),
    (
        RecordTooLargeError,
        r"takes 1048590 bytes encoded and uncompressed, more than max_request_size = 1048576 bytes",
        lambda p: p.send("here", b"x" * 1_048_577),
    ),
    (TopicNameError, r"topic 'no topic' is not a name that Kafka allows", lambda p: p.send("no topic", b"x")),
    (TopicNameError, r"topic '\.\.' is not a name", lambda p: p.send("..", b"x")),
    (TopicNameError, r"\(250 characters\)' is not a name", lambda p: p.send("t" * 250, b"x")),
    (RecordTypeError, r"topic must be a str, not bytes", lambda p: p.send(b"here", b"x")),
    (RecordTypeError, r"topic must be a str, not list", lambda p: p.send([], b"x")),
    (
        RecordTypeError,
        r"keys has 1 entries for 2 values: one each",
        lambda p: p.send_many("here", [b"a", b"b"], keys=[b"k"]),
    ),
    (RecordTypeError, r"values must be a sequence .* not bytes", lambda p: p.send_many("here", b"abc")),
]


@pytest.mark.parametrize(("kind", "text", "call"), REFUSED)
def test_a_refused_record_harms_nothing(
    producer: Producer, kind: type[Exception], text: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(kind, match=text) as caught:
        call(producer)
    assert type(caught.value) is kind
    assert producer.send("here", b"next", partition=0).result(30).partition == 0


def test_a_bad_record_in_send_many_says_how_many_went_before(strict_kafka: KafkaCluster, producer: Producer) -> None:
    strict_kafka.create_topic("partly", 1)
    with pytest.raises(RecordTypeError) as caught:
        producer.send_many("partly", [b"a", b"b", 3, b"d"])  # type: ignore[list-item] # the mistake that is tested
    assert caught.value.accepted == 2
    producer.flush()
    values = [record.value for record in read_back(strict_kafka.bootstrap_servers, "partly", timeout_s=30)]
    assert values == [b"a", b"b"]


def test_unreachable_servers_are_listed_with_their_last_errors(make_producer: MakeProducer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = taken.getsockname()[1]
        producer = make_producer(f"127.0.0.1:{port},no-such-host.invalid:9092", max_block_ms=1000, workers=1)
        with pytest.raises(BootstrapError, match="no bootstrap server answered within max_block_ms=1000") as caught:
            producer.send("t", b"x")
    text = str(caught.value)
    assert re.search(rf"127\.0\.0\.1:{port}: .*refused", text, re.IGNORECASE), text
    assert "no-such-host.invalid:9092: " in text


def test_a_dead_first_server_does_not_matter(strict_kafka: KafkaCluster, make_producer: MakeProducer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        producer = make_producer(f"{dead},{strict_kafka.bootstrap_servers}", workers=1)
        assert producer.send("here", b"x").result(30).topic == "here"


def test_a_closed_producer_says_so(strict_kafka: KafkaCluster, make_producer: MakeProducer) -> None:
    producer = make_producer(strict_kafka.bootstrap_servers, workers=1)
    producer.close()
    producer.close()
    for call in (lambda: producer.send("here", b"x"), lambda: producer.send_many("here", [b"x"]), producer.flush):
        with pytest.raises(ProducerClosedError, match="the producer is closed"):
            call()


def test_memory_that_is_not_there_is_an_error_at_construction_with_both_figures() -> None:
    with pytest.raises(MemoryShortError, match=r"the plan takes \d+\.\d GiB .* only .* are available here"):
        Producer("127.0.0.1:9092", buffer_memory="100TiB")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"linger": 5}, "unknown setting 'linger': did you mean linger_ms?"),
        ({"compression_type": "brotli"}, "compression_type is 'brotli': it must be none, gzip, snappy, lz4 or zstd"),
        ({"compression_type": "gzip", "compression_level": 10}, "gzip has levels 1 .. 9"),
        ({"compression_type": "snappy", "compression_level": 1}, "has no levels: leave it out"),
        ({"linger_ms": -1}, "linger_ms is -1"),
        ({"delivery_timeout_ms": 1000}, "less than linger_ms + request_timeout_ms"),
        ({"buffer_memory": "16KiB"}, "buffer_memory is 16384 bytes, too small"),
        ({"batch_size": "32MiB"}, "more than a quarter of buffer_memory"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_starts(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        Producer("127.0.0.1:9092", **settings)
