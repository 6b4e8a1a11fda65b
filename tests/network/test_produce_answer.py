"""Produce responses as kio writes them, and what no broker would send."""

from __future__ import annotations

import datetime
import struct
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from slabpress.network.messages import PRODUCE
from slabpress.network.produce_answer import decode_produce
from slabpress.network.wire import BrokerAddress, ProduceResult, UnreadableError
from tests.network.fake_broker import build, schema, write

VERSIONS = range(3, 14)
FIRST_WITH_ERRORS = 8
FIRST_FLEXIBLE = 9
FIRST_WITH_HINTS = 10
FIRST_WITH_IDS = 13
_INT32 = st.integers(0, 2**31 - 1)
_TEXTS = st.none() | st.text(max_size=200)


class Said(NamedTuple):
    """What a broker says of a batch."""

    number: int
    error: int
    offset: int
    append_time_ms: int
    record_errors: list[tuple[int, str | None]]
    message: str | None
    leader: tuple[int, int]


class Topic(NamedTuple):
    """What it says of a topic's."""

    name: str
    topic_id: UUID
    said: list[Said]


_ORDINARY = st.builds(
    Said, _INT32, st.just(0), st.integers(0, 2**63 - 1), st.just(-1), st.just([]), st.none(), st.just((-1, -1))
)
_SAID = st.builds(
    Said,
    _INT32,
    st.sampled_from([int(code) for code in ErrorCode]),
    st.integers(-1, 2**63 - 1),
    st.just(-1) | st.integers(0, 2**41),
    st.lists(st.tuples(_INT32, _TEXTS), max_size=3),
    _TEXTS,
    st.just((-1, -1)) | st.tuples(_INT32, _INT32),
)
_TOPICS = st.lists(
    st.builds(
        Topic, st.text("abc_.-", min_size=1, max_size=249), st.uuids(version=4), st.lists(_ORDINARY | _SAID, max_size=4)
    ),
    max_size=3,
)
_ENDPOINTS = st.lists(st.tuples(_INT32, st.text(max_size=200), _INT32, _TEXTS), max_size=3)
EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)


def partition_of(module: Any, version: int, said: Said) -> Any:
    own: dict[str, Any] = {}
    if version >= FIRST_WITH_ERRORS:
        kind = module.BatchIndexAndErrorMessage
        own["record_errors"] = tuple(
            kind(batch_index=index, batch_index_error_message=text) for index, text in said.record_errors
        )
    if version >= FIRST_WITH_HINTS:
        own["current_leader"] = module.LeaderIdAndEpoch(leader_id=said.leader[0], leader_epoch=said.leader[1])
    appended = said.append_time_ms
    return build(
        module.PartitionProduceResponse,
        index=said.number,
        error_code=ErrorCode(said.error),
        base_offset=said.offset,
        log_append_time=None if appended < 0 else EPOCH + datetime.timedelta(milliseconds=appended),
        log_start_offset=7,
        error_message=said.message,
        **own,
    )


def frame_of(
    version: int, throttle_ms: int, topics: list[Topic], endpoints: list[tuple[int, str, int, str | None]]
) -> bytes:
    """As kio writes it, from the correlation id on."""
    module = schema(PRODUCE, version, "response")
    own: dict[str, Any] = {}
    if version >= FIRST_WITH_HINTS:
        own["node_endpoints"] = tuple(
            module.NodeEndpoint(node_id=node, host=host, port=port, rack=rack) for node, host, port, rack in endpoints
        )
    body = module.ProduceResponse(
        responses=tuple(
            module.TopicProduceResponse(
                **({"topic_id": topic.topic_id} if version >= FIRST_WITH_IDS else {"name": topic.name}),
                partition_responses=tuple(partition_of(module, version, said) for said in topic.said),
            )
            for topic in topics
        ),
        throttle_time=datetime.timedelta(milliseconds=throttle_ms),
        **own,
    )
    return struct.pack(">i", 42) + (b"\0" if version >= FIRST_FLEXIBLE else b"") + write(body)


def expected(
    version: int, throttle_ms: int, topics: list[Topic], endpoints: list[tuple[int, str, int, str | None]]
) -> tuple[int, list[ProduceResult], list[BrokerAddress]]:
    """What of it is wanted: throttle time, results and addresses."""
    with_errors, with_hints = version >= FIRST_WITH_ERRORS, version >= FIRST_WITH_HINTS
    results = [
        ProduceResult(
            topic.topic_id if version >= FIRST_WITH_IDS else topic.name,
            said.number,
            said.error,
            said.offset,
            said.append_time_ms,
            [(index, text or "") for index, text in said.record_errors] if with_errors else [],
            (said.message or "") if with_errors else "",
            *(said.leader if with_hints else (-1, -1)),
        )
        for topic in topics
        for said in topic.said
    ]
    brokers = [BrokerAddress(*endpoint[:3]) for endpoint in endpoints] if with_hints else []
    return throttle_ms, results, brokers


@given(st.sampled_from(VERSIONS), _INT32, _TOPICS, _ENDPOINTS)
def test_what_kio_writes_is_read(
    version: int, throttle_ms: int, topics: list[Topic], endpoints: list[tuple[int, str, int, str | None]]
) -> None:
    frame = frame_of(version, throttle_ms, topics, endpoints)
    answer = decode_produce(version, frame)
    assert (answer.throttle_ms, answer.results, answer.brokers) == expected(version, throttle_ms, topics, endpoints)
    assert all(type(result) is ProduceResult for result in answer.results)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_response_that_is_cut_off_anywhere_is_unreadable(version: int) -> None:
    said = [Said(5, 0, 77, -1, [], None, (-1, -1)), Said(6, 87, -1, -1, [(2, "bad")], "no", (3, 4))]
    frame = frame_of(version, 9, [Topic("t", UUID(int=5), said)], [(3, "h", 9092, "r")])
    for length in range(len(frame)):
        with pytest.raises(UnreadableError, match=f"produce response v{version} of {length} bytes does not parse"):
            decode_produce(version, frame[:length])


@given(st.sampled_from(VERSIONS), st.binary(max_size=300))
def test_any_bytes_are_read_or_unreadable(version: int, data: bytes) -> None:
    try:
        answer = decode_produce(version, b"\0\0\0\x2a" + data)
    except UnreadableError:
        return
    assert len(answer.results) <= len(data)


def test_unknown_tags_are_passed_over_wherever_they_are() -> None:
    """KIP-482; kio 0.6 stops at one."""
    tags = b"\x02\x09\x02zz\x0a\0"
    leader = b"\x02\0\x09" + struct.pack(">ii", 3, 8) + b"\0" + b"\x09\x01z"
    record_error = struct.pack(">i", 1) + b"\0" + tags
    partition = struct.pack(">ihqqq", 5, 6, -1, -1, -1) + b"\x02" + record_error + b"\0" + leader
    endpoint = b"\x02" + struct.pack(">i", 3) + b"\x02h" + struct.pack(">i", 9) + b"\0" + tags
    frame = (
        struct.pack(">i", 42) + tags + b"\x02\x02t\x02" + partition + tags + struct.pack(">i", 0)
        + b"\x02\0" + bytes([len(endpoint)]) + endpoint + b"\x07\x01z"
    )  # fmt: skip
    answer = decode_produce(10, frame)
    assert answer.results == [ProduceResult("t", 5, 6, -1, -1, [(1, "")], "", 3, 8)]
    assert answer.brokers == [(3, "h", 9)]


def test_an_error_code_that_nobody_knows_is_a_result() -> None:
    frame = struct.pack(">iih1siihqqi", 42, 1, 1, b"t", 1, 5, 9999, 77, -1, 0)
    assert decode_produce(3, frame).results[0].error == 9999


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (3, struct.pack(">i", 2**31 - 1)),
        (3, struct.pack(">ih", 1, 30_000)),
        (9, b"\0\xff\xff\xff\xff\xff\x01"),
        (9, b"\x01\x09\xff\x7f"),
        (9, b"\0\x02\x03\xff\xfe"),
    ],
    ids=["too many topics", "string beyond the end", "endless varint", "tag beyond the end", "not UTF-8"],
)
def test_what_makes_no_sense_is_unreadable(version: int, body: bytes) -> None:
    with pytest.raises(UnreadableError):
        decode_produce(version, struct.pack(">i", 42) + body)


def test_a_tagged_field_that_is_longer_than_it_says_is_unreadable() -> None:
    """Or each of many would read all that follows it: 80 KB took 657 MiB and 18 s."""
    head = struct.pack(">i", 42) + b"\0" + b"\x01" + struct.pack(">i", 0)
    fields = 20
    tags = bytes([fields]) + b"\0\x01\x15" * fields + bytes(2000)
    with pytest.raises(UnreadableError):
        decode_produce(12, head + tags)
    leader = b"\x01\0\x04" + struct.pack(">ii", 3, 8)  # eight bytes in a field of four
    partition = struct.pack(">ihqqq", 5, 6, -1, -1, -1) + b"\x01\0" + leader
    frame = struct.pack(">i", 42) + b"\0" + b"\x02\x02t\x02" + partition + b"\0" + struct.pack(">i", 0) + b"\0"
    with pytest.raises(UnreadableError):
        decode_produce(10, frame)
