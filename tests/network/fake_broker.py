"""A broker that answers as a test tells it to, over kio's own readers and writers: what real ones rarely do."""

from __future__ import annotations

import datetime
import importlib
import io
import itertools
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

PRODUCE: Final = 0
METADATA: Final = 3
API_VERSIONS: Final = 18
INIT_PRODUCER_ID: Final = 22
_NAMES: Final = {
    PRODUCE: "produce",
    METADATA: "metadata",
    API_VERSIONS: "api_versions",
    INIT_PRODUCER_ID: "init_producer_id",
}
NO_TIME: Final = datetime.timedelta(0)


class Asked(NamedTuple):
    """A request that came."""

    api: int
    version: int
    correlation_id: int
    client_id: str
    body: Any
    connection: int


class PartitionAnswer(NamedTuple):
    """What to say of one partition of a Produce request."""

    error: int = 0
    base_offset: int = 0
    record_errors: tuple[tuple[int, str], ...] = ()
    message: str | None = None


def schema(api: int, version: int, kind: str) -> Any:
    """Kio's module of a request or response."""
    return importlib.import_module(f"kio.schema.{_NAMES[api]}.v{version}.{kind}")


def write(entity: Any) -> bytes:
    """An entity's bytes."""
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


def build(entity: Any, **fields: Any) -> Any:
    """Make an entity of those fields that its version has."""
    return entity(**{name: value for name, value in fields.items() if name in entity.__dataclass_fields__})


class FakeBroker:
    """One broker, node 1, in threads of this process.

    Args:
        topics: partition count of each topic.
        topic_ids: the ids that Metadata gives, none by default.
        versions: (lowest, highest) of each API, over the defaults; (0, -1) for one that it has not.
        port: where to listen, 0 for any.

    Attributes:
        asked: the requests so far.
        on_produce: says what to answer to each (topic, partition); may be replaced.
        leaders: of (topic, partition), node 1 by default; -1 is none.
        epoch: the leader epoch that Metadata gives.
        more_brokers: host and port of other nodes that Metadata names.
        advertised: the port that Metadata names for this broker, 0 for its own.
        throttle_ms: in the next Produce answers.
        silent: Produce requests are read and not answered.
        metadata_error: of the next Metadata answers, as far as their version has one.
        topic_errors: of topics in Metadata, over what is known of them.
        init_error: of the next InitProducerId answers. There are none for brokers without it in ``versions``.
        hooks: for each API a function that may give whole frames instead of the usual answer; None: no answer.
    """

    def __init__(
        self,
        topics: dict[str, int],
        *,
        topic_ids: dict[str, UUID] | None = None,
        versions: dict[int, tuple[int, int]] | None = None,
        port: int = 0,
    ) -> None:
        self.topics = topics
        self.topic_ids = topic_ids or {}
        usual = {PRODUCE: (0, 13), METADATA: (0, 13), API_VERSIONS: (0, 4), INIT_PRODUCER_ID: (0, 5)}
        self.versions = {api: known for api, known in {**usual, **(versions or {})}.items() if known[1] >= 0}
        self.asked: list[Asked] = []
        self.on_produce: Callable[[str, int], PartitionAnswer] = lambda _topic, _partition: PartitionAnswer()
        self.leaders: dict[tuple[str, int], int] = {}
        self.epoch = 0
        self.more_brokers: dict[int, tuple[str, int]] = {}
        self.advertised = 0
        self.throttle_ms = 0
        self.silent = False
        self.metadata_error = 0
        self.topic_errors: dict[str, int] = {}
        self.init_error = 0
        self.hooks: dict[int, Callable[[Asked], bytes | None]] = {}
        self.connections = 0
        self._producer_ids = itertools.count(1000)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, close every connection and end the threads."""
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Close every connection."""
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def produced(self) -> list[Asked]:
        """The Produce requests so far."""
        return [asked for asked in self.asked if asked.api == PRODUCE]

    def count(self, api: int) -> int:
        """How many requests of an API there were so far."""
        return sum(asked.api == api for asked in self.asked)

    def records(self) -> list[tuple[str | UUID, int, bytes]]:
        """(topic or its id, partition, batch) of everything produced so far."""
        return [
            (topic.topic_id if asked.version >= 13 else topic.name, partition.index, bytes(partition.records))
            for asked in self.produced()
            for topic in asked.body.topic_data
            for partition in topic.partition_data
        ]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while len(size := stream.read(4)) == 4:
                    length = int.from_bytes(size, "big")
                    frame = stream.read(length)
                    if len(frame) < length:
                        return  # cut amid a request
                    answer = self._answer(frame, number)
                    if answer == b"":
                        return
                    if answer is not None:
                        connection.sendall(answer)
            except OSError:
                return

    def _answer(self, frame: bytes, number: int) -> bytes | None:
        api, version, correlation_id, length = struct.unpack(">hhih", frame[:10])
        request = schema(api, version, "request")
        kind = request.__dict__[f"{_NAMES[api].title().replace('_', '')}Request"]
        _, used = entity_reader(kind.__header_schema__)(frame, 0)
        body, _ = entity_reader(kind)(frame, used)
        asked = Asked(api, version, correlation_id, frame[10 : 10 + length].decode(), body, number)
        self.asked.append(asked)
        if api in self.hooks:
            return self.hooks[api](asked)
        usual = {
            PRODUCE: self._produce,
            METADATA: self.metadata,
            API_VERSIONS: self.api_versions,
            INIT_PRODUCER_ID: self.init_producer_id,
        }
        return usual[api](asked)

    def frame(self, asked: Asked, body: Any) -> bytes:
        """A whole response."""
        header = struct.pack(">i", asked.correlation_id)
        if type(body).__flexible__ and asked.api != API_VERSIONS:
            header += b"\0"
        data = header + write(body)
        return struct.pack(">i", len(data)) + data

    def api_versions(self, asked: Asked) -> bytes:
        """The usual answer to ApiVersions."""
        module = schema(API_VERSIONS, asked.version, "response")
        keys = tuple(
            build(module.ApiVersion, api_key=api, min_version=low, max_version=high)
            for api, (low, high) in self.versions.items()
        )
        return self.frame(
            asked,
            build(module.ApiVersionsResponse, error_code=ErrorCode.none, api_keys=keys, throttle_time=NO_TIME),
        )

    def init_producer_id(self, asked: Asked) -> bytes:
        """The usual answer to InitProducerId: an id, or ``init_error``."""
        module = schema(INIT_PRODUCER_ID, asked.version, "response")
        granted = self.init_error == 0
        body = build(
            module.InitProducerIdResponse,
            throttle_time=NO_TIME,
            error_code=ErrorCode(self.init_error),
            producer_id=next(self._producer_ids) if granted else -1,
            producer_epoch=0 if granted else -1,
        )
        return self.frame(asked, body)

    def metadata(self, asked: Asked) -> bytes:
        """The usual answer to Metadata."""
        module = schema(METADATA, asked.version, "response")
        brokers = {1: ("127.0.0.1", self.advertised or self.port), **self.more_brokers}
        body = build(
            module.MetadataResponse,
            throttle_time=NO_TIME,
            brokers=tuple(
                build(module.MetadataResponseBroker, node_id=node, host=host, port=port, rack=None)
                for node, (host, port) in brokers.items()
            ),
            cluster_id="fake",
            controller_id=1,
            topics=tuple(self._topic(module, topic.name) for topic in asked.body.topics),
            cluster_authorized_operations=-1,
            error_code=ErrorCode(self.metadata_error),
        )
        return self.frame(asked, body)

    def _topic(self, module: Any, name: str) -> Any:
        error = self.topic_errors.get(name, 0 if name in self.topics else ErrorCode.unknown_topic_or_partition)
        partitions = tuple(
            build(
                module.MetadataResponsePartition,
                error_code=ErrorCode.none,
                partition_index=partition,
                leader_id=self.leaders.get((name, partition), 1),
                leader_epoch=self.epoch,
                replica_nodes=(1,),
                isr_nodes=(1,),
                offline_replicas=(),
            )
            for partition in range(0 if error else self.topics[name])
        )
        return build(
            module.MetadataResponseTopic,
            error_code=ErrorCode(error),
            name=name,
            topic_id=self.topic_ids.get(name),
            is_internal=False,
            partitions=partitions,
            topic_authorized_operations=-1,
        )

    def _produce(self, asked: Asked) -> bytes | None:
        if asked.body.acks == 0 or self.silent:
            return None
        return self.produce_answer(asked)

    def produce_answer(self, asked: Asked) -> bytes:
        """The usual answer to Produce."""
        module = schema(PRODUCE, asked.version, "response")
        names = {value: name for name, value in self.topic_ids.items()}
        topics = []
        for topic in asked.body.topic_data:
            by_id = asked.version >= 13
            name = names[topic.topic_id] if by_id else topic.name
            partitions = tuple(
                self._partition(module, p.index, self.on_produce(name, p.index)) for p in topic.partition_data
            )
            own = {"topic_id": topic.topic_id} if by_id else {"name": name}
            topics.append(module.TopicProduceResponse(partition_responses=partitions, **own))
        body = module.ProduceResponse(
            responses=tuple(topics), throttle_time=datetime.timedelta(milliseconds=self.throttle_ms)
        )
        return self.frame(asked, body)

    @staticmethod
    def _partition(module: Any, index: int, answer: PartitionAnswer) -> Any:
        own: dict[str, Any] = {}
        if hasattr(module, "BatchIndexAndErrorMessage"):
            own["record_errors"] = tuple(
                module.BatchIndexAndErrorMessage(batch_index=at, batch_index_error_message=words)
                for at, words in answer.record_errors
            )
        return build(
            module.PartitionProduceResponse,
            index=index,
            error_code=ErrorCode(answer.error),
            base_offset=answer.base_offset,
            log_append_time=None,
            log_start_offset=0,
            error_message=answer.message,
            **own,
        )
