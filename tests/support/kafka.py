"""Real Apache Kafka for tests: clusters on loopback, their logs on disk, and an independent reader."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.kafka_install import (
    STOP_TIMEOUT_S,
    Node,
    admin_client,
    dump_segments,
    elect_preferred,
    ensure_class_archive,
    launch,
    new_nodes,
    reassign,
    wait_until,
)
from tests.support.kafka_install import BatchSummary as BatchSummary
from tests.support.kafka_install import KafkaStartError as KafkaStartError
from tests.support.kafka_install import classpath as classpath
from tests.support.kafka_install import missing_tool as missing_tool
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import PartitionMetadata

CHANGE_TIMEOUT_S = 30.0
NO_CONFIG: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """A record as an independent consumer read it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class KafkaCluster:
    """Brokers of a real Apache Kafka on loopback, each one also a controller of the quorum.

    Broker ids count from 1. Auto-creation of topics is on, retention is off. `proxies` has the proxy of
    each broker. What a killed broker led stays leaderless for 6 s, broker.session.timeout.ms.

    Args:
        brokers: How many.
        config: Broker settings that go before those of the rig.
        proxied: Puts a `Proxy` in front of each broker. Clients that start from
            `proxied_bootstrap_servers` stay behind the proxies; `bootstrap_servers` goes round them.
    """

    def __init__(self, brokers: int = 1, *, config: Mapping[str, str] = NO_CONFIG, proxied: bool = False) -> None:
        ensure_class_archive()
        self.proxies: dict[int, Proxy] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="slabpress-kafka-"))
        self._nodes = {node.id: node for node in new_nodes(self._folder, brokers)}
        try:
            if proxied:
                self.proxies = {node.id: Proxy("127.0.0.1", node.proxied_port) for node in self._all()}
            launch(self._all(), config, {number: proxy.address for number, proxy in self.proxies.items()})
            self._client: AdminClient = admin_client(self.bootstrap_servers)
        except BaseException:
            self.close()
            raise

    def _all(self) -> list[Node]:
        return list(self._nodes.values())

    def close(self) -> None:
        """Ends all brokers and proxies and removes their directory; nothing on disk is kept, so it kills."""
        for node in self._all():
            node.end(signal.SIGKILL, STOP_TIMEOUT_S)
        for proxy in self.proxies.values():
            proxy.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """The brokers' own addresses."""
        return ",".join(node.address for node in self._all())

    @property
    def proxied_bootstrap_servers(self) -> str:
        """The proxies' addresses."""
        if not self.proxies:
            raise ValueError("the cluster was started without proxied=True")
        return ",".join(proxy.address for proxy in self.proxies.values())

    @property
    def broker_ids(self) -> list[int]:
        """All brokers, running or not."""
        return list(self._nodes)

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        replication_factor: int = 1,
        config: Mapping[str, str] = NO_CONFIG,
    ) -> None:
        """Creates a topic and waits until each of its partitions has a leader."""
        topic = NewTopic(name, partitions, replication_factor, config=dict(config))
        self._client.create_topics([topic])[name].result(CHANGE_TIMEOUT_S)

        def led() -> bool:
            found = self._partitions(name)
            return len(found) == partitions and all(part.leader >= 0 for part in found.values())

        self._wait_until(led, f"a leader for all {partitions} partitions of {name}")

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and waits until the metadata no longer has it."""
        self._client.delete_topics([name])[name].result(CHANGE_TIMEOUT_S)
        self._wait_until(lambda: not self._partitions(name), f"{name} deleted")

    def leader(self, topic: str, partition: int) -> int:
        """The broker that leads the partition now, -1 for none."""
        return int(self._partition(topic, partition).leader)

    def move_leader(self, topic: str, partition: int, to_broker: int) -> None:
        """Makes a broker the leader of a partition, and its replica first if it is none yet."""
        now = list(self._partition(topic, partition).replicas)
        rest = [replica for replica in now if replica != to_broker]
        wanted = [to_broker, *rest[: len(now) - 1]]
        if wanted != now:
            reassign(self.bootstrap_servers, topic, partition, wanted)
            what = f"replicas {wanted} of partition {partition} of {topic}"
            self._wait_until(lambda: self._replicas_are(topic, partition, wanted), what)
        if self.leader(topic, partition) != to_broker:
            elect_preferred(self._client, topic, partition)
        what = f"broker {to_broker} leads partition {partition} of {topic}"
        self._wait_until(lambda: self.leader(topic, partition) == to_broker, what)

    def _wait_until(self, is_said: Callable[[], bool], what: str) -> None:
        """Waits until the brokers say so, whichever is asked: each says what it has heard, a stopped one hears late."""
        brokers, in_a_row = len(self.broker_ids), 0

        def is_known() -> bool:
            nonlocal in_a_row
            in_a_row = in_a_row + 1 if is_said() else 0
            return in_a_row >= (1 if brokers == 1 else 5 * brokers)  # one is asked at random

        wait_until(is_known, what, CHANGE_TIMEOUT_S)

    def _replicas_are(self, topic: str, partition: int, wanted: list[int]) -> bool:
        found = self._partition(topic, partition)
        return list(found.replicas) == wanted and sorted(found.isrs) == sorted(wanted)

    def _partition(self, topic: str, partition: int) -> "PartitionMetadata":
        found = self._partitions(topic)
        if partition not in found:
            raise KeyError(f"partition {partition} of {topic} is not in the metadata")
        return found[partition]

    def _partitions(self, topic: str) -> "dict[int, PartitionMetadata]":
        """The topic's partitions; none when there is no such topic."""
        deadline = time.monotonic() + CHANGE_TIMEOUT_S
        while True:
            try:
                # Asked for all topics: asking for one by name would create it.
                found = self._client.list_topics(timeout=3).topics.get(topic)
                return dict(found.partitions) if found is not None else {}
            except KafkaException:  # the broker that was asked is down; the next try asks another
                if time.monotonic() > deadline:
                    raise

    def stop(self, broker_id: int) -> None:
        """Ends a broker with SIGTERM and waits for it; one that takes over 20 s is killed."""
        self._nodes[broker_id].end(signal.SIGTERM, STOP_TIMEOUT_S)

    def kill(self, broker_id: int) -> None:
        """Ends a broker with SIGKILL."""
        self._nodes[broker_id].end(signal.SIGKILL, STOP_TIMEOUT_S)

    def start(self, broker_id: int) -> None:
        """Starts a broker again, on its old ports and directory, and waits until it serves."""
        node = self._nodes[broker_id]
        if node.process is not None:
            raise ValueError(f"broker {broker_id} is running")
        node.run()
        node.await_ready(frozenset({broker_id}))

    def pause(self, broker_id: int) -> None:
        """Freezes a broker: its connections stay open and nothing answers."""
        self._running(broker_id).send_signal(signal.SIGSTOP)

    def resume(self, broker_id: int) -> None:
        """Lets a frozen broker go on."""
        self._running(broker_id).send_signal(signal.SIGCONT)

    def _running(self, broker_id: int) -> subprocess.Popen[bytes]:
        process = self._nodes[broker_id].process
        if process is None:
            raise ValueError(f"broker {broker_id} is not running")
        return process

    def log_dir(self, broker_id: int) -> Path:
        """The directory that holds a broker's partitions."""
        return self._nodes[broker_id].data

    def dump_log(self, topic: str, partition: int, *, broker_id: int | None = None) -> Iterator[BatchSummary]:
        """The batches of a partition as they lie on disk, at its leader unless a broker is named.

        Raises:
            KafkaStartError: The tool failed, or found bytes that are no batch.
        """
        where = self.log_dir(self.leader(topic, partition) if broker_id is None else broker_id)
        segments = sorted(where.glob(f"{topic}-{partition}/*.log"))
        if not segments:
            raise FileNotFoundError(f"partition {partition} of {topic} has no segment in {where}")
        return dump_segments(segments)


def read_back(
    bootstrap_servers: str, topic: str, *, timeout_s: float, isolation: str = "read_committed"
) -> Iterator[Record]:
    """Reads a topic from offset 0 of each partition up to the ends that hold when this is called.

    The reader is confluent-kafka's and checks the CRC of each batch. Partitions come interleaved.

    Raises:
        TimeoutError: Not all had come within `timeout_s`; it says what is missing.
        KafkaException: The consumer met an error.
    """
    deadline = time.monotonic() + timeout_s
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "slabpress-read-back",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": isolation,
            "check.crcs": True,
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 16384,
            "log_level": 2,
        }
    )
    try:
        ends = _ends(consumer, topic, timeout_s)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    except BaseException:
        consumer.close()
        raise
    return _read(consumer, topic, ends, deadline)


def _ends(consumer: Consumer, topic: str, timeout_s: float) -> dict[int, int]:
    """The partitions that hold records, with the offset after their last one."""
    partitions = consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
    if not partitions:
        raise KeyError(f"{topic} is not in the metadata")
    ends: dict[int, int] = {}
    for partition in partitions:
        marks = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
        if marks is None:
            raise TimeoutError(f"end of partition {partition} of {topic}: no answer within {timeout_s:g} s")
        ends[partition] = marks[1]
    return {partition: end for partition, end in ends.items() if end > 0}


def _read(consumer: Consumer, topic: str, ends: Mapping[int, int], deadline: float) -> Iterator[Record]:
    at = dict.fromkeys(ends, 0)
    try:
        while behind := {partition: at[partition] for partition in ends if at[partition] < ends[partition]}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: read up to {behind}, not up to {dict(ends)} in time")
            for message in consumer.consume(10_000, timeout=0.1):
                partition, offset = _position(message)
                if message.error() is not None:
                    at[partition] = max(at[partition], offset)
                elif offset < ends[partition]:
                    at[partition] = offset + 1
                    yield _record(message, partition, offset)
    finally:
        consumer.close()


def _position(message: Message) -> tuple[int, int]:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return cast("int", message.partition()), cast("int", message.offset())


def _record(message: Message, partition: int, offset: int) -> Record:
    headers = tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))
    return Record(partition, offset, message.key(), message.value(), headers, message.timestamp()[1])
