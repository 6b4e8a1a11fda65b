"""The rig's own behaviour: what it says of a broker, a mock or a proxy is so."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import wait_until
from tests.support.mock_cluster import MockCluster
from tests.support.mock_server import MockClusterError
from tests.support.proxy import Proxy

PRODUCE = 0
NOT_ENOUGH_REPLICAS = 19
BASE_MS = 1_700_000_000_000


def _produce(bootstrap_servers: str, topic: str, count: int, partitions: int = 1, **config: str) -> None:
    failed: list[object] = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    settings = {"bootstrap.servers": bootstrap_servers, "linger.ms": "20", "log_level": "2"}
    producer = Producer({**settings, **{name.replace("_", "."): value for name, value in config.items()}})
    for number in range(count):
        producer.produce(
            topic,
            value=b"value-%d" % number * 10,
            key=b"key-%d" % number if number % 2 else None,
            partition=number % partitions,
            headers=[("number", b"%d" % number)],
            timestamp=BASE_MS + number,
            on_delivery=delivered,
        )
    assert producer.flush(30) == 0
    assert failed == []


@pytest.mark.kafka
def test_what_one_client_produces_another_reads_back_and_the_disk_shows(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic, partitions=2)
    _produce(kafka.bootstrap_servers, topic, 1000, partitions=2, compression_type="lz4")

    records = sorted(read_back(kafka.bootstrap_servers, topic, timeout_s=20), key=lambda r: r.timestamp_ms)
    assert [record.timestamp_ms - BASE_MS for record in records] == list(range(1000))
    last = records[999]
    assert (last.partition, last.offset) == (1, 499)
    assert (last.key, last.value) == (b"key-999", b"value-999" * 10)
    assert last.headers == (("number", b"999"),)
    assert records[0].key is None

    batches = [batch for partition in (0, 1) for batch in kafka.dump_log(topic, partition)]
    assert sum(batch.count for batch in batches) == 1000
    assert all(batch.is_valid and batch.all_parsed for batch in batches)
    assert "lz4" in {batch.codec for batch in batches}

    kafka.delete_topic(topic)
    with pytest.raises(KeyError):
        kafka.leader(topic, 0)


@pytest.mark.kafka
def test_reading_back_a_paused_broker_ends_in_time(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic)
    _produce(kafka.bootstrap_servers, topic, 10)
    reading = read_back(kafka.bootstrap_servers, topic, timeout_s=2)
    kafka.pause(1)
    try:
        with pytest.raises(TimeoutError, match=r"read up to \{0: 0\}, not up to \{0: 10\}"):
            list(reading)
    finally:
        kafka.resume(1)
    assert len(list(read_back(kafka.bootstrap_servers, topic, timeout_s=20))) == 10


@pytest.mark.kafka
def test_a_damaged_segment_is_told(kafka: KafkaCluster, topic: str) -> None:
    kafka.create_topic(topic)
    _produce(kafka.bootstrap_servers, topic, 10)
    (segment,) = (kafka.log_dir(1) / f"{topic}-0").glob("*.log")
    with segment.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"?")
    assert [batch.is_valid for batch in kafka.dump_log(topic, 0)][-1] is False


@pytest.mark.kafka
def test_leaders_move_and_a_killed_broker_comes_back(kafka3: KafkaCluster, topic: str) -> None:
    kafka3.create_topic(topic, replication_factor=3)
    before = kafka3.leader(topic, 0)
    after = next(broker for broker in kafka3.broker_ids if broker != before)
    kafka3.move_leader(topic, 0, after)
    assert kafka3.leader(topic, 0) == after

    kafka3.kill(after)
    try:
        wait_until(lambda: kafka3.leader(topic, 0) not in {after, -1}, "another broker leads", 30)
        _produce(kafka3.bootstrap_servers, topic, 10, acks="all")
    finally:
        kafka3.start(after)
    assert len(list(read_back(kafka3.bootstrap_servers, topic, timeout_s=20))) == 10


@pytest.mark.kafka
def test_an_unreplicated_partition_moves_with_its_records(kafka3: KafkaCluster, topic: str) -> None:
    kafka3.create_topic(topic, replication_factor=1)
    _produce(kafka3.bootstrap_servers, topic, 10)
    to_broker = next(broker for broker in kafka3.broker_ids if broker != kafka3.leader(topic, 0))
    kafka3.move_leader(topic, 0, to_broker)
    assert sum(batch.count for batch in kafka3.dump_log(topic, 0, broker_id=to_broker)) == 10


@pytest.mark.kafka
@pytest.mark.usefixtures("kafka")  # skips when there is no Kafka here
def test_clients_of_a_proxied_cluster_stay_behind_its_proxies(topic: str) -> None:
    with KafkaCluster(1, proxied=True) as cluster:
        cluster.create_topic(topic)
        _produce(cluster.proxied_bootstrap_servers, topic, 1000)
        forwarded = cluster.proxies[1].up.forwarded_bytes
        assert forwarded > 90_000
        assert len(list(read_back(cluster.bootstrap_servers, topic, timeout_s=20))) == 1000
        assert cluster.proxies[1].up.forwarded_bytes - forwarded < 1000
        _lose_an_acknowledgement(cluster, topic)
        assert len(list(read_back(cluster.bootstrap_servers, topic, timeout_s=20))) == 1002
    assert not cluster.log_dir(1).exists()


def _lose_an_acknowledgement(cluster: KafkaCluster, topic: str) -> None:
    """Sends two records; the broker's answer to the second one never comes, and it is sent again."""
    proxy = cluster.proxies[1]
    settings = {"bootstrap.servers": proxy.address, "enable.idempotence": "true", "log_level": "0"}
    producer = Producer({**settings, "linger.ms": "0"})
    producer.produce(topic, b"first")
    assert producer.flush(20) == 0
    proxy.down.swallow = True
    producer.produce(topic, b"second")
    wait_until(lambda: proxy.down.swallowed_bytes > 0, "the broker answers", 20)
    proxy.down.swallow = False
    proxy.kill_connections()
    assert producer.flush(20) == 0


@pytest.mark.kafka
@pytest.mark.usefixtures("kafka")
def test_a_broker_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)broker 1.* exit code 1: .*num\.io\.threads"):
        KafkaCluster(1, config={"num.io.threads": "-7"})


def test_the_mock_cluster_fails_requests_as_told(topic: str) -> None:
    with MockCluster(brokers=3) as mock:
        mock.create_topic(topic, partitions=2, replication_factor=3)
        mock.set_leader(topic, 0, 2)
        mock.set_leader(topic, 1, 2)
        mock.start_request_tracking()
        mock.push_request_errors(PRODUCE, [NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS])
        _produce(mock.bootstrap_servers, topic, 1)
        assert mock.requests()[PRODUCE, 2] == 3
        mock.stop_request_tracking()
        assert mock.requests() == {}

        mock.set_down(3)
        assert sorted(_brokers(mock)) == [1, 2]
        mock.set_up(3)
        assert sorted(_brokers(mock)) == [1, 2, 3]


def test_the_mock_cluster_answers_late_as_told(topic: str) -> None:
    with MockCluster() as mock:
        mock.create_topic(topic)
        mock.broker_push_request_error_rtts(1, PRODUCE, [(NOT_ENOUGH_REPLICAS, 150), (0, 150)])
        started = time.monotonic()
        _produce(mock.bootstrap_servers, topic, 1)
        assert time.monotonic() - started > 0.3

        mock.set_rtt(1, 200)
        started = time.monotonic()
        _brokers(mock)
        assert time.monotonic() - started > 0.2

        mock.set_apiversion(PRODUCE, 3, 7)
        with pytest.raises(MockClusterError, match="broker 9"):
            mock.set_down(9)


def _brokers(mock: MockCluster) -> list[int]:
    client = AdminClient({"bootstrap.servers": mock.bootstrap_servers, "log_level": 0})
    return list(client.list_topics(timeout=10).brokers)


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, for as long as it gets any."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=_echo, args=(listening.accept()[0],), daemon=True).start()

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        server.join()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


def _connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def _receive(connection: socket.socket, count: int) -> bytes:
    """Up to `count` bytes; fewer when the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data


def test_the_proxy_forwards_late_and_slowly(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, _connect(proxy) as connection:
        sent = os.urandom(3_000_000)
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        assert _receive(connection, len(sent)) == sent
        sender.join()
        assert (proxy.up.forwarded_bytes, proxy.down.forwarded_bytes) == (len(sent), len(sent))

        proxy.up.delay_ms, proxy.down.delay_ms = 100, 150
        started = time.monotonic()
        connection.sendall(b"late")
        assert _receive(connection, 4) == b"late"
        assert time.monotonic() - started >= 0.25

        proxy.up.delay_ms, proxy.down.delay_ms = 0, 0
        proxy.down.bytes_per_s = 100_000
        started = time.monotonic()
        connection.sendall(bytes(30_000))
        assert len(_receive(connection, 30_000)) == 30_000
        assert time.monotonic() - started > 0.2


def test_the_proxy_cuts_after_the_bytes_it_was_told(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy:
        with _connect(proxy) as connection:
            proxy.cut_after(1000, "down")
            connection.sendall(bytes(5000))
            assert len(_receive(connection, 5000)) == 1000
        with _connect(proxy) as connection:  # once only
            connection.sendall(bytes(5000))
            assert len(_receive(connection, 5000)) == 5000
            proxy.kill_connections()
            assert _receive(connection, 1) == b""
        wait_until(lambda: proxy.open_connections == 0, "no connection left", 5)
        assert proxy.connections == 2


def test_the_proxy_holds_and_swallows(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, _connect(proxy) as connection:
        proxy.pause()
        connection.sendall(b"held")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(5)
        proxy.resume()
        assert _receive(connection, 4) == b"held"

        proxy.down.swallow = True
        connection.sendall(b"gone")
        wait_until(lambda: proxy.down.swallowed_bytes == 4, "4 bytes swallowed", 5)
        proxy.down.swallow = False
        connection.sendall(b"back")
        assert _receive(connection, 4) == b"back"


def test_the_proxy_of_a_broker_that_is_down_ends_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy, _connect(proxy) as connection:
        assert _receive(connection, 1) == b""


def test_no_process_outlives_a_killed_test_run() -> None:
    program = (
        "import os, signal, threading\n"
        "from tests.support.mock_cluster import MockCluster\n"
        "made = []\n"
        "maker = threading.Thread(target=lambda: made.append(MockCluster()))\n"
        "maker.start(); maker.join()\n"
        "print(made[0].pid, flush=True)\n"
        "assert made[0].requests() == {}\n"
        "print('alive', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        assert run.stdout.readline() == "alive\n"  # though the thread that started it has ended
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not _lives(child), f"process {child} ended", 10)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
