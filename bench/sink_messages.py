"""The sink's rare messages, through kio: what it offers, who leads what, and producer ids.

Produce is not here: its requests are not decoded (bench/sink_server.py).
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import io
import itertools
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

PRODUCE, FETCH, METADATA, FIND_COORDINATOR, API_VERSIONS, INIT_PRODUCER_ID = 0, 1, 3, 10, 18, 22
# Produce 3 to 8 is magic 2, zstd (from 7) and idempotence, with plain arrays: what every client here speaks, and what
# can be read without looking at each byte. librdkafka concludes from Fetch 4 that a broker takes magic 2, from
# Fetch 10 zstd, and from FindCoordinator lz4; nobody asks the sink for either.
OFFERED = {
    PRODUCE: (3, 8),
    FETCH: (0, 11),
    METADATA: (0, 12),
    FIND_COORDINATOR: (0, 2),
    API_VERSIONS: (0, 4),
    INIT_PRODUCER_ID: (0, 4),
}
NODE = 1
HOST = "127.0.0.1"
_STEMS = {METADATA: "Metadata", API_VERSIONS: "ApiVersions", INIT_PRODUCER_ID: "InitProducerId"}
_MODULES = {METADATA: "metadata", API_VERSIONS: "api_versions", INIT_PRODUCER_ID: "init_producer_id"}
_NO_TIME = datetime.timedelta(0)


class UnspokenError(Exception):
    """A request that the sink has no answer to."""


class Speaker:
    """Answers what is not Produce.

    Args:
        port: where the sink listens, on loopback.
        topics: the number of partitions of each topic, by name; looked at anew for each answer.
    """

    def __init__(self, port: int, topics: Mapping[str, int]) -> None:
        self._port = port
        self._topics = topics
        self._producer_ids: Iterator[int] = itertools.count(1000)

    def answer(self, api: int, version: int, correlation_id: int, frame: bytes) -> bytes:
        """The answer to a request, with its length in front.

        Args:
            api: the request's API key.
            version: the request's version.
            correlation_id: the request's.
            frame: the whole request, without its length.

        Raises:
            UnspokenError: the sink does not speak this API, or not in this version.
        """
        lowest, highest = OFFERED.get(api, (0, -1))
        if api == API_VERSIONS and version > highest:
            # KIP-511: whoever asks in a version that is too new is told so in version 0, and what there is.
            return self._encode(api, 0, correlation_id, self._versions(0, ErrorCode.unsupported_version))
        if api not in _STEMS or not lowest <= version <= highest:
            raise UnspokenError(f"the sink has no answer to a request with API key {api}, version {version}")
        if api == API_VERSIONS:
            body = self._versions(version, ErrorCode.none)
        elif api == METADATA:
            body = self._metadata(version, frame)
        else:
            body = _body(api, version, error_code=ErrorCode.none, producer_id=next(self._producer_ids))
        return self._encode(api, version, correlation_id, body)

    @staticmethod
    def _encode(api: int, version: int, correlation_id: int, body: Any) -> bytes:
        out = io.BytesIO()
        header = type(body).__header_schema__
        entity_writer(header)(out, header(correlation_id=correlation_id))
        _writer(api, version)(out, body)
        answer = out.getvalue()
        return len(answer).to_bytes(4, "big") + answer

    @staticmethod
    def _versions(version: int, error: ErrorCode) -> Any:
        entry = _response_module(API_VERSIONS, version).ApiVersion
        keys = tuple(entry(api_key=api, min_version=least, max_version=most) for api, (least, most) in OFFERED.items())
        return _body(API_VERSIONS, version, error_code=error, api_keys=keys)

    def _metadata(self, version: int, frame: bytes) -> Any:
        module = _response_module(METADATA, version)
        broker = _made(module.MetadataResponseBroker, node_id=NODE, host=HOST, port=self._port)
        asked = _asked_topics(version, frame)
        names = list(self._topics) if asked is None else asked
        topics = tuple(self._topic(module, name) for name in names)
        return _body(METADATA, version, brokers=(broker,), cluster_id="sink", controller_id=NODE, topics=topics)

    def _topic(self, module: Any, name: str) -> Any:
        partitions = tuple(
            _made(
                module.MetadataResponsePartition,
                error_code=ErrorCode.none,
                partition_index=index,
                leader_id=NODE,
                leader_epoch=0,
                replica_nodes=(NODE,),
                isr_nodes=(NODE,),
            )
            for index in range(self._topics.get(name, 0))
        )
        error = ErrorCode.none if partitions else ErrorCode.unknown_topic_or_partition
        topic_id = uuid.uuid5(uuid.NAMESPACE_OID, name) if partitions else None
        fields = {"error_code": error, "name": name, "topic_id": topic_id, "partitions": partitions}
        return _made(module.MetadataResponseTopic, is_internal=False, **fields)


def _asked_topics(version: int, frame: bytes) -> list[str] | None:
    """The topics that a Metadata request names; None: all of them."""
    request = importlib.import_module(f"kio.schema.metadata.v{version}.request").MetadataRequest
    header_reader, reader = entity_reader(request.__header_schema__), entity_reader(request)
    _, used = header_reader(frame, 0)
    topics = reader(frame, used)[0].topics
    if topics is None or (version == 0 and not topics):
        return None
    return [str(topic.name) for topic in topics]


@cache
def _response_module(api: int, version: int) -> Any:
    return importlib.import_module(f"kio.schema.{_MODULES[api]}.v{version}.response")


@cache
def _writer(api: int, version: int) -> Any:
    return entity_writer(getattr(_response_module(api, version), f"{_STEMS[api]}Response"))


def _body(api: int, version: int, **fields: Any) -> Any:
    response = getattr(_response_module(api, version), f"{_STEMS[api]}Response")
    return _made(response, throttle_time=_NO_TIME, producer_epoch=0, **fields)


def _made(entity: Any, **fields: Any) -> Any:
    """An entity of kio's with those of the fields that its version has."""
    names = {field.name for field in dataclasses.fields(entity)}
    return entity(**{name: value for name, value in fields.items() if name in names})
