"""The benchmarks' sink, with the clients that send to it."""

from __future__ import annotations

import os
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.sink import Sink, SinkError
from slabpress import Producer

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
VALUES = [b'{"number":%d,"pad":"%s"}' % (number, b"x" * 150) for number in range(3000)]


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture(name="topic")
def _topic(sink: Sink) -> str:
    name = f"topic-{uuid.uuid4().hex}"
    sink.create_topic(name, 3)
    return name


def by_slabpress(servers: str, topic: str, codec: str, *, idempotent: bool) -> None:
    with Producer(servers, compression_type=codec, enable_idempotence=idempotent, workers=1) as producer:
        promise = producer.send_many(topic, VALUES)
        producer.flush()
        assert promise.done()


def by_confluent(servers: str, topic: str, codec: str, *, idempotent: bool) -> None:
    from confluent_kafka import Producer as Confluent

    failed: list[Any] = []
    settings = {"bootstrap.servers": servers, "compression.type": codec, "enable.idempotence": idempotent}
    producer = Confluent(settings | {"acks": "all"})
    for value in VALUES:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert not failed


def by_kafka_python(servers: str, topic: str, codec: str, *, idempotent: bool) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=servers,
        compression_type=None if codec == "none" else codec,
        enable_idempotence=idempotent,
        acks="all",
    )
    futures = [producer.send(topic, value) for value in VALUES]
    producer.flush(30)
    for future in futures:
        future.get(0)
    producer.close()


CLIENTS: dict[str, Callable[..., None]] = {
    "slabpress": by_slabpress,
    "confluent": by_confluent,
    "kafka-python": by_kafka_python,
}


# kafka-python reads its message definitions in a way that Python 3.11 calls deprecated.
@pytest.mark.filterwarnings("ignore:(read|open)_text is deprecated:DeprecationWarning")
@pytest.mark.parametrize("idempotent", [False, True], ids=["plain", "idempotent"])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("client", CLIENTS)
def test_every_record_of_a_client_is_acknowledged_and_counted_once(
    sink: Sink, topic: str, client: str, codec: str, idempotent: bool
) -> None:
    CLIENTS[client](sink.bootstrap_servers, topic, codec, idempotent=idempotent)
    taken = sink.taken(topic)
    assert taken.records == len(VALUES)
    assert sum(taken.codecs.values()) == taken.batches
    assert CODECS[codec] in taken.codecs
    plain = sum(map(len, VALUES))
    assert taken.octets > plain if codec == "none" else taken.octets < plain


def test_offsets_of_a_partition_go_on_from_batch_to_batch(sink: Sink, topic: str) -> None:
    with Producer(sink.bootstrap_servers, workers=1, linger_ms=0) as producer:
        offsets = [producer.send(topic, b"value", partition=2).result(30).offset for _ in range(5)]
        elsewhere = producer.send(topic, b"value", partition=0).result(30).offset
    assert offsets == [0, 1, 2, 3, 4]
    assert elsewhere == 0


def test_a_topic_that_is_created_again_begins_anew(sink: Sink, topic: str) -> None:
    by_slabpress(sink.bootstrap_servers, topic, "none", idempotent=False)
    sink.create_topic(topic, 1)
    assert sink.taken(topic) == (0, 0, 0, {})


def test_counts_of_a_topic_that_was_not_created_are_refused_by_name(sink: Sink) -> None:
    with pytest.raises(SinkError, match="no topic 'missing'"):
        sink.taken("missing")


def test_the_sinks_processor_time_is_told_and_grows_with_its_work(sink: Sink, topic: str) -> None:
    before = sink.cpu_seconds()
    by_slabpress(sink.bootstrap_servers, topic, "none", idempotent=False)
    assert sink.cpu_seconds() > before


# What no client sends, by hand.


def batch(records: int, payload: bytes, *, magic: int = 2, codec: int = 0) -> bytes:
    after_length = struct.pack(">ibIhiqqqhii", 0, magic, 0, codec, records - 1, 0, 0, -1, -1, -1, records) + payload
    return struct.pack(">qi", 0, len(after_length)) + after_length


def produce(topic: str, batches: list[tuple[int, bytes]], *, version: int = 7, acks: int = -1) -> bytes:
    partitions = b"".join(struct.pack(">ii", index, len(records)) + records for index, records in batches)
    name = struct.pack(">h", len(topic)) + topic.encode()
    body = (
        struct.pack(">hhi", 0, version, 77) + struct.pack(">h", 4) + b"hand" + struct.pack(">hhii", -1, acks, 1000, 1)
    )
    body += name + struct.pack(">i", len(batches)) + partitions
    return struct.pack(">i", len(body)) + body


def connect(sink: Sink) -> socket.socket:
    host, port = sink.bootstrap_servers.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.settimeout(30)
    return connection


def receive(connection: socket.socket) -> bytes:
    def exactly(octets: int) -> bytes:
        found = b""
        while len(found) < octets:
            more = connection.recv(octets - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    return exactly(int.from_bytes(exactly(4), "big"))


def errors_of(answer: bytes, topic: str, partitions: int) -> list[tuple[int, int, int]]:
    """Index, error and base offset of each partition in an answer of version 7 with one topic."""
    correlation_id, topics, name_length = struct.unpack_from(">iih", answer)
    assert (correlation_id, topics, name_length) == (77, 1, len(topic))
    at = 10 + name_length
    assert answer[10:at].decode() == topic
    assert struct.unpack_from(">i", answer, at)[0] == partitions
    found = [struct.unpack_from(">ihq", answer, at + 4 + number * 30) for number in range(partitions)]
    assert len(answer) == at + 4 + partitions * 30 + 4
    return [(index, error, offset) for index, error, offset in found]


def test_a_request_that_comes_byte_by_byte_or_with_the_next_one_is_read_all_the_same(sink: Sink, topic: str) -> None:
    request = produce(topic, [(1, batch(10, os.urandom(40_000)))])
    with connect(sink) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(100):
            connection.sendall(request[place : place + 1])
        connection.sendall(request[100:] + request + request[:9])
        assert errors_of(receive(connection), topic, 1) == [(1, 0, 0)]
        assert errors_of(receive(connection), topic, 1) == [(1, 0, 10)]
        connection.sendall(request[9:])
        assert errors_of(receive(connection), topic, 1) == [(1, 0, 20)]
    assert sink.taken(topic).records == 30


def test_records_larger_than_any_of_its_buffers_are_passed_over(sink: Sink, topic: str) -> None:
    with connect(sink) as connection:
        connection.sendall(produce(topic, [(0, batch(3, bytes(9 << 20))), (1, batch(4, b"x"))]))
        assert errors_of(receive(connection), topic, 2) == [(0, 0, 0), (1, 0, 0)]
    assert sink.taken(topic).records == 7


def test_what_is_no_batch_and_what_goes_nowhere_is_refused_alone(sink: Sink, topic: str) -> None:
    wrong = [(0, batch(1, b"", magic=1)), (0, b"short"), (0, batch(1, b"") + batch(1, b"")), (3, batch(1, b""))]
    with connect(sink) as connection:
        connection.sendall(produce(topic, [*wrong, (0, batch(1, b"good"))]))
        found = errors_of(receive(connection), topic, 5)
    assert [error for _, error, _ in found] == [87, 87, 87, 3, 0]
    assert sink.taken(topic).records == 1


def test_with_acks_0_nothing_is_answered_and_all_is_counted(sink: Sink, topic: str) -> None:
    with connect(sink) as connection:
        connection.sendall(produce(topic, [(0, batch(5, b"a"))], acks=0) + produce(topic, [(0, batch(1, b"b"))]))
        assert errors_of(receive(connection), topic, 1) == [(0, 0, 5)]
    assert sink.taken(topic).records == 6


@pytest.mark.parametrize("version", [2, 9])
def test_a_version_that_was_not_offered_ends_the_connection(sink: Sink, topic: str, version: int) -> None:
    with connect(sink) as connection:
        connection.sendall(produce(topic, [(0, batch(1, b"a"))], version=version))
        with pytest.raises((EOFError, ConnectionError)):
            receive(connection)


def test_a_request_whose_parts_do_not_add_up_ends_the_connection(sink: Sink, topic: str) -> None:
    request = produce(topic, [(0, batch(1, b"a"))])
    with connect(sink) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request[4:] + b"0000")
        with pytest.raises((EOFError, ConnectionError)):
            receive(connection)
