"""Produce requests against what kio writes of the same, and reads of them."""

from __future__ import annotations

import datetime
import io
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.serial import entity_reader, entity_writer

from slabpress.network.messages import PRODUCE
from slabpress.network.produce_codec import encode_produce, unsigned_varint
from slabpress.network.wire import ProduceTopic
from tests.network.fake_broker import schema

VERSIONS = range(3, 14)
FIRST_WITH_IDS = 13
# Where the length of a batch takes one byte more.
_SIZES = st.sampled_from([61, 126, 127, 128, 16_382, 16_383, 70_000])
_TOPICS = st.lists(
    st.tuples(
        st.text("abc_.-", min_size=1, max_size=249), st.uuids(), st.lists(st.tuples(st.integers(0, 2**31 - 1), _SIZES))
    ),
    max_size=3,
)


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(bytearray(part)) for part in parts]


def written_by_kio(version: int, client_id: str, acks: int, timeout_ms: int, topics: list[ProduceTopic]) -> bytes:
    module = schema(PRODUCE, version, "request")
    body = module.ProduceRequest(
        transactional_id=None,
        acks=acks,
        timeout=datetime.timedelta(milliseconds=timeout_ms),
        topic_data=tuple(
            module.TopicProduceData(
                **({"topic_id": topic.topic_id} if version >= FIRST_WITH_IDS else {"name": topic.name}),
                partition_data=tuple(
                    module.PartitionProduceData(index=number, records=b"".join(parts))
                    for number, parts, _ in topic.partitions
                ),
            )
            for topic in topics
        ),
    )
    kind = module.ProduceRequest.__header_schema__
    out = io.BytesIO()
    header = kind(request_api_key=PRODUCE, request_api_version=version, correlation_id=42, client_id=client_id)
    entity_writer(kind)(out, header)
    entity_writer(module.ProduceRequest)(out, body)
    return struct.pack(">i", len(out.getvalue())) + out.getvalue()


@given(st.sampled_from(VERSIONS), st.text(max_size=30), st.sampled_from([-1, 0, 1]), st.integers(0, 2**31 - 1), _TOPICS)
def test_a_request_is_what_kio_writes(
    version: int, client_id: str, acks: int, timeout_ms: int, shape: list[tuple[str, UUID, list[tuple[int, int]]]]
) -> None:
    topics = [
        ProduceTopic(name, topic_id, [(number, views(b"h" * 61, b"p" * (size - 61)), size) for number, size in sizes])
        for name, topic_id, sizes in shape
    ]
    request = encode_produce(version, 42, client_id, acks, timeout_ms, topics)
    data = b"".join(request.parts)
    assert data == written_by_kio(version, client_id, acks, timeout_ms, topics)
    assert len(data) == request.size


@pytest.mark.parametrize("version", VERSIONS)
def test_batches_are_sent_from_where_they_are_and_read_back(version: int) -> None:
    first, second, third = views(b"h" * 61, b"p" * 500), views(b"h" * 61, b"q"), views(b"h" * 61)
    ids = UUID(int=77), UUID(int=78)
    topics = [
        ProduceTopic("t", ids[0], [(3, first, 561), (0, second, 62)]),
        ProduceTopic("u", ids[1], [(1, third, 61)]),
    ]
    request = encode_produce(version, 42, "me", -1, 1500, topics)
    for view in (*first, *second, *third):
        assert any(part is view for part in request.parts)
    data = b"".join(request.parts)[4:]
    kind = schema(PRODUCE, version, "request").ProduceRequest
    header, used = entity_reader(kind.__header_schema__)(data, 0)
    body, end = entity_reader(kind)(data, used)
    assert used + end == len(data)
    assert (header.client_id, header.correlation_id, body.acks, body.timeout.total_seconds()) == ("me", 42, -1, 1.5)
    found = [
        (topic.topic_id if version >= FIRST_WITH_IDS else topic.name, part.index, part.records)
        for topic in body.topic_data
        for part in topic.partition_data
    ]
    names = ids if version >= FIRST_WITH_IDS else ("t", "u")
    assert found == [
        (names[0], 3, b"h" * 61 + b"p" * 500),
        (names[0], 0, b"h" * 61 + b"q"),
        (names[1], 1, b"h" * 61),
    ]


def test_a_topic_without_an_id_is_refused_where_ids_are_wanted() -> None:
    with pytest.raises(ValueError, match="topic 't' has no id, which Produce v13 wants"):
        encode_produce(13, 1, "me", -1, 1, [ProduceTopic("t", None, [])])


@pytest.mark.parametrize(("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_unsigned_varints(value: int, encoded: bytes) -> None:
    assert unsigned_varint(value) == encoded
