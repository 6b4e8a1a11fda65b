"""Metadata responses that kio writes, whole, cut off and changed, read by our own reader."""

from __future__ import annotations

import random
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from slabpress.network.messages import METADATA, SPOKEN
from slabpress.network.metadata_codec import decode_metadata
from slabpress.network.wire import MetadataAnswer, WireError
from tests.network.metadata_frames import ID, Partition, Response, Topic, encoded

VERSIONS = range(SPOKEN[METADATA][0], SPOKEN[METADATA][1] + 1)
NODES = st.integers(0, 2**31 - 1)
LEADERS = st.just(-1) | NODES
NAMES = st.text("abcXYZ09._-", min_size=1, max_size=249)
IDS = st.none() | st.uuids().filter(lambda found: found.int != 0)
ERRORS = st.sampled_from([ErrorCode.none, ErrorCode.leader_not_available, ErrorCode.unknown_topic_or_partition])
REPLICAS = st.lists(NODES, max_size=4).map(tuple)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Partition, ...]:
    numbers = draw(st.integers(0, 8).flatmap(lambda count: st.permutations(range(count))))
    return tuple(Partition(n, draw(LEADERS), draw(LEADERS), draw(REPLICAS), draw(REPLICAS)) for n in numbers)


RESPONSES = st.builds(
    Response,
    st.integers(0, 2**31 - 1),
    ERRORS,
    st.lists(st.tuples(NODES, st.text(max_size=60), NODES, st.none() | st.text(max_size=300)), max_size=5).map(tuple),
    st.none() | st.text(max_size=300),
    st.lists(st.builds(Topic, NAMES, IDS, ERRORS, partitions()), max_size=5, unique_by=lambda topic: topic.name).map(
        tuple
    ),
)


def leaders_of(answer: MetadataAnswer, place: int = 0) -> tuple[list[int], list[int]]:
    leaders = answer.topics[place].leaders
    assert leaders.nodes.typecode == leaders.epochs.typecode == "i"
    assert len(leaders) == len(leaders.nodes) == len(leaders.epochs)
    return list(leaders.nodes), list(leaders.epochs)


def expect(version: int, response: Response, wanted: set[str], answer: MetadataAnswer) -> None:
    """Compare what was read with what was written."""
    assert answer.throttle_ms == (response.throttle_ms if version >= 3 else 0)
    assert answer.error == (int(response.error) if version >= 13 else 0)
    assert answer.brokers == [(node, host, port) for node, host, port, _ in response.brokers]
    kept = [topic for topic in response.topics if topic.name in wanted]
    assert [topic.name for topic in answer.topics] == [topic.name for topic in kept]
    for place, (found, topic) in enumerate(zip(answer.topics, kept, strict=True)):
        assert found.topic_id == (topic.topic_id if version >= 10 else None)
        assert found.error == int(topic.error)
        in_order = sorted(topic.partitions)
        # Those of brokers before 2.4 are not to be relied on (KAFKA-9212).
        epochs = [p.epoch if version >= 9 else -1 for p in in_order]
        assert leaders_of(answer, place) == ([p.leader for p in in_order], epochs)


@pytest.mark.parametrize("version", VERSIONS)
@given(response=RESPONSES, data=st.data())
def test_what_kio_writes_is_read(version: int, response: Response, data: st.DataObject) -> None:
    names = [topic.name or "" for topic in response.topics]
    wanted = set(data.draw(st.lists(st.sampled_from(["other", *names]))))
    expect(version, response, wanted, decode_metadata(version, encoded(version, response), wanted))


def test_topics_that_are_known_by_id_only_are_passed_over() -> None:
    """Version 12 gives no name to one that was asked for by its id."""
    nameless = Topic(None, UUID(int=9), ErrorCode.unknown_topic_id, ())
    response = Response(topics=(nameless, nameless, Topic("t", None, ErrorCode.none, ())))
    assert [topic.name for topic in decode_metadata(12, encoded(12, response), {"t"}).topics] == ["t"]


# A response whose parts are all there twice at least, but small.
SAMPLE = Response(
    brokers=((1, "a", 9092, "r"), (2, "b", 9093, None)),
    topics=(
        Topic("t", UUID(int=1), ErrorCode.none, (Partition(1, 2, 5, offline=(3,)), Partition(0, 1, 6))),
        Topic("u", None, ErrorCode.leader_not_available, ()),
    ),
)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_response_that_is_cut_off_is_a_wire_error(version: int) -> None:
    frame = encoded(version, SAMPLE)
    for size in range(len(frame)):
        with pytest.raises(WireError, match=f"metadata response v{version} of {size} bytes"):
            decode_metadata(version, frame[:size], {"t", "u"})


def read_or_refuse(version: int, frame: bytes) -> MetadataAnswer | None:
    """Read a frame that may be anything: nothing but a WireError or an answer that makes sense comes of it."""
    try:
        answer = decode_metadata(version, frame, {"t", "u"})
    except WireError:
        return None
    assert {topic.name for topic in answer.topics} <= {"t", "u"}
    for place in range(len(answer.topics)):
        nodes, epochs = leaders_of(answer, place)
        assert min([0, *nodes, *epochs]) >= -1
        assert 18 * len(nodes) <= len(frame)
    return answer


@pytest.mark.parametrize("version", VERSIONS)
@given(seed=st.integers(0, 2**32))
def test_a_response_with_changed_bytes_is_an_answer_or_a_wire_error(version: int, seed: int) -> None:
    rng = random.Random(seed)
    frame = bytearray(encoded(version, SAMPLE))
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(4, len(frame))
        frame[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if rng.random() < 0.3:
        del frame[rng.randrange(4, len(frame)) :]
    read_or_refuse(version, bytes(frame))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_single_byte_may_be_wrong(version: int) -> None:
    frame = encoded(version, SAMPLE)
    read = 0
    for place in range(len(frame)):
        for byte in (0, 1, 0x7F, 0x80, 0xFF):
            read += read_or_refuse(version, frame[:place] + bytes([byte]) + frame[place + 1 :]) is not None
    assert 0 < read < 5 * len(frame)


@pytest.mark.parametrize("version", [1, 4, 5, 7, 9, 13])
@given(rubbish=st.binary(max_size=300))
def test_rubbish_is_an_answer_or_a_wire_error(version: int, rubbish: bytes) -> None:
    read_or_refuse(version, rubbish)


def test_tagged_fields_are_passed_over_wherever_they_are() -> None:
    """Kio cannot read these: a tag in the header, in a broker, in a partition, in a topic and at the end."""
    tags = b"\x02\x07\x02zz\x81\x01\x00"  # two fields: 7 of two bytes, 129 of none
    broker = struct.pack(">i", 1) + b"\x02a" + struct.pack(">i", 9092) + b"\x00" + tags
    partition = struct.pack(">hiii", 0, 0, 1, 8) + b"\x02\0\0\0\x01" * 2 + b"\x01" + tags
    topic = struct.pack(">h", 0) + b"\x02t" + ID.bytes + b"\x00" + b"\x02" + partition + struct.pack(">i", -1) + tags
    frame = (
        struct.pack(">i", 42) + tags + struct.pack(">i", 3) + b"\x02" + broker + b"\x00" + struct.pack(">i", 1)
        + b"\x02" + topic + struct.pack(">h", 0) + tags
    )  # fmt: skip
    answer = decode_metadata(13, frame, {"t"})
    assert answer.brokers == [(1, "a", 9092)]
    assert answer.topics[0].topic_id == ID
    assert leaders_of(answer) == ([1], [8])
    for size in range(len(frame)):
        with pytest.raises(WireError):
            decode_metadata(13, frame[:size], {"t"})


@pytest.mark.parametrize(
    "numbers", [(1,), (0, 2), (0, 0), (-1, 0), (0, 2**31 - 1)], ids=["late", "gap", "twice", "negative", "huge"]
)
@pytest.mark.parametrize("version", [1, 13])
def test_partition_numbers_that_leave_gaps_are_refused(version: int, numbers: tuple[int, ...]) -> None:
    """Where the arrays ended would be anybody's guess."""
    topic = Topic("t", ID, ErrorCode.none, tuple(Partition(number, 1) for number in numbers))
    with pytest.raises(WireError, match=r"partition -?\d+ of \d"):
        decode_metadata(version, encoded(version, Response(topics=(topic,))), {"t"})


def test_a_negative_leader_is_none() -> None:
    """Also the one that marks what was not read yet."""
    topic = Topic("t", ID, ErrorCode.none, (Partition(0, -2, -2), Partition(1, -7, -7)))
    answer = decode_metadata(13, encoded(13, Response(topics=(topic,))), {"t"})
    assert leaders_of(answer) == ([-1, -1], [-1, -1])


def test_a_topic_that_comes_twice_is_refused() -> None:
    topic = Topic("t", ID, ErrorCode.none, ())
    with pytest.raises(WireError, match="topic 't' a second time"):
        decode_metadata(13, encoded(13, Response(topics=(topic, topic))), {"t"})


def test_a_broker_that_is_none_is_refused() -> None:
    """-1 stands for no leader."""
    with pytest.raises(WireError, match="a broker -1 at 'a'"):
        decode_metadata(5, encoded(5, Response(brokers=((-1, "a", 1, None),))), set())


def test_a_name_that_is_not_utf8_is_refused() -> None:
    frame = encoded(5, Response(brokers=((1, "host", 1, None),))).replace(b"host", b"\xffost")
    with pytest.raises(WireError, match="not UTF-8"):
        decode_metadata(5, frame, set())
