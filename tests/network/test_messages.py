"""Requests and responses against kio's own readers and writers, and kafka-python's."""

from __future__ import annotations

import importlib.metadata
import re
import struct
from uuid import UUID

import pytest
from kio.serial import entity_reader

from slabpress.network import messages
from slabpress.network.messages import API_VERSIONS, INIT_PRODUCER_ID, METADATA, PRODUCE
from slabpress.network.wire import Request, UnreadableError, WireError
from tests.network.fake_broker import schema

ID = UUID(int=77)


def parsed(request: Request, api: int, version: int) -> object:
    """The body as kio reads it; the header is checked."""
    data = b"".join(request.parts)
    assert len(data) == request.size == struct.unpack(">i", data[:4])[0] + 4
    assert struct.unpack(">hhi", data[4:12]) == (api, version, 42)
    module = schema(api, version, "request")
    kind = next(value for name, value in vars(module).items() if name.endswith("Request"))
    _, used = entity_reader(kind.__header_schema__)(data[4:], 0)
    body, end = entity_reader(kind)(data[4:], used)
    assert used + end == len(data) - 4
    return body


@pytest.mark.parametrize("version", range(1, 14))
def test_metadata_asks_for_just_the_topics(version: int) -> None:
    body = parsed(messages.encode_metadata(version, 42, "me", ["a", "b"]), METADATA, version)
    assert [topic.name for topic in body.topics] == ["a", "b"]  # type: ignore[attr-defined]
    assert getattr(body, "allow_auto_topic_creation", True) is True


@pytest.mark.parametrize("version", range(4))
def test_api_versions_reads_back(version: int) -> None:
    body = parsed(messages.encode_api_versions(version, 42, "me"), API_VERSIONS, version)
    if version == 3:
        assert body.client_software_name == "slabpress"  # type: ignore[attr-defined]


def test_software_version_is_the_package_and_pleases_the_broker() -> None:
    """KIP-511's pattern: no '+' and no '_'."""
    assert importlib.metadata.version("slabpress") == messages.SOFTWARE_VERSION
    for text in (messages.SOFTWARE_NAME, messages.SOFTWARE_VERSION):
        assert re.fullmatch(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?", text)


def test_a_lowest_version_of_0_does_not_mean_that_0_is_spoken() -> None:
    """KAFKA-18659: Kafka 4 offers Produce from 0 and refuses 0 to 2."""
    assert messages.common_version(PRODUCE, {PRODUCE: (0, 12)}) == 12
    assert messages.common_version(PRODUCE, {PRODUCE: (0, 99)}) == 13
    assert messages.common_version(PRODUCE, {PRODUCE: (0, 2)}) is None
    assert messages.common_version(PRODUCE, {PRODUCE: (14, 20)}) is None
    assert messages.common_version(PRODUCE, {}) is None


def test_every_version_that_is_spoken_has_types() -> None:
    for api, (lowest, highest) in messages.SPOKEN.items():
        for version in range(lowest, highest + 1):
            messages._types(api, version)


def test_an_unknown_tag_is_unreadable_and_no_crash() -> None:
    """Kafka says to pass over it; kio 0.6 cannot, so an older version is spoken with that broker."""
    frame = struct.pack(">i", 42) + b"\0" + struct.pack(">ihqh", 0, 0, 1, 0) + b"\x01\x07\x02zz"
    with pytest.raises(UnreadableError):
        messages.decode_init_producer_id(4, frame)
    assert messages.common_version(INIT_PRODUCER_ID, {INIT_PRODUCER_ID: (0, 5)}, flexible=False) == 1
    versions = struct.pack(">ihb", 42, 0, 1) + struct.pack(">i", 0) + b"\x01\x09\x02zz"
    with pytest.raises(UnreadableError):
        messages.decode_api_versions(3, versions)


@pytest.mark.parametrize("frame", [struct.pack(">ii", 42, 0), b"", struct.pack(">iihqh", 42, 0, 9999, 1, 0)])
def test_what_does_not_parse_is_a_wire_error(frame: bytes) -> None:
    with pytest.raises(WireError):
        messages.decode_init_producer_id(0, frame)


def test_names_and_retriability_of_errors() -> None:
    assert messages.error_name(19) == "NOT_ENOUGH_REPLICAS"
    assert messages.error_name(9999) == "error 9999"
    assert messages.is_retriable(19)
    assert not messages.is_retriable(10)
    assert not messages.is_retriable(9999)
