"""The thin layer over kio: the requests and responses this process speaks, and nothing else of the protocol.

The only module that imports kio. Produce and Metadata responses are read, and Produce requests written, by modules of
their own; what comes once a connection, or once in minutes, goes through kio. Responses are decoded into small named
tuples; a response that does not parse is a WireError, whatever kio raised.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import io
import struct
from collections.abc import Iterable
from functools import cache
from typing import Any, Final, NamedTuple

from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError

from slabpress.network.wire import ProducerIdAnswer, Request, UnreadableError, VersionsAnswer, WireError

PRODUCE: Final = 0
METADATA: Final = 3
API_VERSIONS: Final = 18
INIT_PRODUCER_ID: Final = 22

# What we speak. ApiVersions stops at 3: Azure Event Hubs resets the connection on 4 (franz-go's changelog).
SPOKEN: Final[dict[int, tuple[int, int]]] = {
    PRODUCE: (3, 13),
    METADATA: (1, 13),
    API_VERSIONS: (0, 3),
    INIT_PRODUCER_ID: (0, 5),
}
_FIRST_FLEXIBLE: Final = {PRODUCE: 9, METADATA: 9, API_VERSIONS: 3, INIT_PRODUCER_ID: 2}
_MODULES: Final = {
    PRODUCE: "produce",
    METADATA: "metadata",
    API_VERSIONS: "api_versions",
    INIT_PRODUCER_ID: "init_producer_id",
}

FIRST_PRODUCE_WITH_ZSTD: Final = 7

# KIP-511 checks these against [a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?; a test compares with the package's.
SOFTWARE_NAME: Final = "slabpress"
SOFTWARE_VERSION: Final = "0.1.0"

_LENGTH: Final = struct.Struct(">i")
# Java sends this where there is no transaction (TransactionManager).
_NO_TRANSACTION_MS: Final = 2**31 - 1


def error_name(code: int) -> str:
    """Kafka's name of an error code, such as NOT_ENOUGH_REPLICAS; the number of one that kio does not know."""
    try:
        return ErrorCode(code).name.upper()
    except ValueError:
        return f"error {code}"


def is_retriable(code: int) -> bool:
    """Whether Kafka calls this error retriable; one that kio does not know is not."""
    try:
        return ErrorCode(code).retriable
    except ValueError:
        return False


def common_version(api: int, ranges: dict[int, tuple[int, int]], *, flexible: bool = True) -> int | None:
    """The highest version of an API that both sides speak, None if there is none.

    Args:
        api: which API.
        ranges: what the broker offers.
        flexible: whether versions with tagged fields will do.

    The lowest version a broker offers is no sign of what it accepts: Kafka 4 offers Produce from 0 and refuses
    0 to 2 (KAFKA-18659), so only the highest common one is ever used.
    """
    if api not in ranges:
        return None
    lowest, highest = SPOKEN[api]
    if not flexible:
        highest = min(highest, _FIRST_FLEXIBLE[api] - 1)
    theirs_lowest, theirs_highest = ranges[api]
    version = min(highest, theirs_highest)
    return version if version >= max(lowest, theirs_lowest) else None


class _Types(NamedTuple):
    """kio's classes for one version of one API, imported when that version is first spoken."""

    header: Any
    write_header: Any
    request: Any
    write_request: Any
    fields: frozenset[str]
    module: Any
    read_header: Any
    read_response: Any


@cache
def _types(api: int, version: int) -> _Types:
    folder = f"kio.schema.{_MODULES[api]}.v{version}"
    request_module = importlib.import_module(f"{folder}.request")
    response_module = importlib.import_module(f"{folder}.response")
    stem = _MODULES[api].title().replace("_", "")
    request = getattr(request_module, f"{stem}Request")
    response = getattr(response_module, f"{stem}Response")
    return _Types(
        request.__header_schema__,
        entity_writer(request.__header_schema__),
        request,
        entity_writer(request),
        frozenset(field.name for field in dataclasses.fields(request)),
        request_module,
        entity_reader(response.__header_schema__),
        entity_reader(response),
    )


def _encode(types: _Types, api: int, version: int, correlation_id: int, client_id: str, body: Any) -> Request:
    out = io.BytesIO(bytes(_LENGTH.size))
    out.seek(_LENGTH.size)
    header = types.header(
        request_api_key=api, request_api_version=version, correlation_id=correlation_id, client_id=client_id
    )
    types.write_header(out, header)
    types.write_request(out, body)
    frame = out.getbuffer()
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return Request([frame], len(frame))


def encode_api_versions(version: int, correlation_id: int, client_id: str) -> Request:
    """The first request of a connection."""
    types = _types(API_VERSIONS, version)
    names = {"client_software_name": SOFTWARE_NAME, "client_software_version": SOFTWARE_VERSION}
    body = types.request(**{name: value for name, value in names.items() if name in types.fields})
    return _encode(types, API_VERSIONS, version, correlation_id, client_id, body)


def encode_metadata(version: int, correlation_id: int, client_id: str, topics: Iterable[str]) -> Request:
    """Ask for these topics, which may be created by it if the broker is configured so."""
    types = _types(METADATA, version)
    own: dict[str, Any] = {"topic_id": None} if version >= 10 else {}
    asked = tuple(types.module.MetadataRequestTopic(name=name, **own) for name in topics)
    fields = {
        "topics": asked,
        "allow_auto_topic_creation": True,
        "include_cluster_authorized_operations": False,
        "include_topic_authorized_operations": False,
    }
    body = types.request(**{name: value for name, value in fields.items() if name in types.fields})
    return _encode(types, METADATA, version, correlation_id, client_id, body)


def encode_init_producer_id(version: int, correlation_id: int, client_id: str) -> Request:
    """Ask for a producer id, as a producer without transactions (KIP-98)."""
    types = _types(INIT_PRODUCER_ID, version)
    fields = {
        "transactional_id": None,
        "transaction_timeout": datetime.timedelta(milliseconds=_NO_TRANSACTION_MS),
        "producer_id": -1,
        "producer_epoch": -1,
    }
    body = types.request(**{name: value for name, value in fields.items() if name in types.fields})
    return _encode(types, INIT_PRODUCER_ID, version, correlation_id, client_id, body)


def _decode(api: int, version: int, frame: bytes) -> Any:
    types = _types(api, version)
    try:
        _, used = types.read_header(frame, 0)
        return types.read_response(frame, used)[0]
    except (SerialError, ValueError, OverflowError, TypeError, KeyError) as error:
        # KeyError: kio 0.6 stops at a tagged field that it does not know, which Kafka says to pass over.
        raise UnreadableError(f"{_MODULES[api]} response v{version} does not parse: {error}") from error


def decode_api_versions(version: int, frame: bytes) -> VersionsAnswer:
    """Read an ApiVersions response; one with error 35 has the body of version 0 whatever was asked (KIP-511).

    The count of a version 0 body is checked first: librdkafka's mock broker writes a compact array there, whose
    first bytes read as a count of 16 million.
    """
    error = int.from_bytes(frame[4:6], "big", signed=True)
    if error == ErrorCode.unsupported_version:
        version = 0
    if version == 0 and int.from_bytes(frame[6:10], "big") * 6 != len(frame) - 10:
        raise WireError(f"api_versions response v0 of {len(frame)} bytes has another number of entries")
    body = _decode(API_VERSIONS, version, frame)
    ranges = {key.api_key: (key.min_version, key.max_version) for key in body.api_keys or ()}
    return VersionsAnswer(int(body.error_code), ranges)


def _milliseconds(time: datetime.timedelta) -> int:
    return max(0, round(time.total_seconds() * 1000))


def decode_init_producer_id(version: int, frame: bytes) -> ProducerIdAnswer:
    """Read an InitProducerId response."""
    body = _decode(INIT_PRODUCER_ID, version, frame)
    return ProducerIdAnswer(_milliseconds(body.throttle_time), int(body.error_code), body.producer_id)
