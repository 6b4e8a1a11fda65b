"""The protocol state of a connection, without a socket."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from slabpress.network.connection import TRANSITIONS, Answer, Connection, NegotiationError, State
from slabpress.network.messages import API_VERSIONS, METADATA, PRODUCE, encode_metadata
from slabpress.network.wire import RESPONSE_MAX_BYTES, Request, WireError

SECOND = 1_000_000_000


def frame(correlation_id: int, body: bytes) -> bytes:
    return struct.pack(">ii", 4 + len(body), correlation_id) + body


def versions_body(*ranges: tuple[int, int, int], error: int = 0) -> bytes:
    """An ApiVersions response of version 0."""
    return struct.pack(">hi", error, len(ranges)) + b"".join(struct.pack(">hhh", *entry) for entry in ranges)


def feed(connection: Connection, data: bytes | memoryview, now: int = 0) -> list[Answer]:
    return list(connection.received(memoryview(data), now))


def drain(connection: Connection) -> bytes:
    """Everything it wants to send, in small bites."""
    sent = b""
    while buffers := connection.buffers(2):
        some = b"".join(buffers)[:7]
        connection.sent(len(some), 0)
        sent += some
    return sent


@pytest.fixture
def ready() -> Connection:
    connection = Connection("me", SECOND, plain=True)
    connection.connected(0)
    sent = drain(connection)
    feed(connection, frame(int.from_bytes(sent[8:12], "big"), versions_body((PRODUCE, 0, 9), (METADATA, 0, 12))))
    assert connection.state is State.READY
    return connection


def ask(connection: Connection, *, unanswered: bool = False, now: int = 0) -> int:
    correlation_id = connection.next_id(unanswered=unanswered)
    request = encode_metadata(9, correlation_id, "me", ["t"])
    connection.send(request, correlation_id, METADATA, 9, correlation_id, now)
    return correlation_id


def test_transitions_name_every_state_and_end_in_closed() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.CLOSED] == frozenset()


def test_nothing_but_api_versions_goes_out_first() -> None:
    connection = Connection("me", SECOND, plain=False)
    assert not connection.has_outgoing
    connection.connected(0)
    size, api, version = struct.unpack(">ihh", (sent := drain(connection))[:8])
    assert (size, api, version) == (len(sent) - 4, API_VERSIONS, 3)
    with pytest.raises(ValueError, match="NEGOTIATING to NEGOTIATING"):
        connection.connected(0)


def test_versions_are_the_highest_common_ones(ready: Connection) -> None:
    assert ready.versions == {PRODUCE: 9, METADATA: 12}


def test_an_api_without_a_common_version_is_absent() -> None:
    connection = Connection("me", SECOND, plain=True)
    connection.connected(0)
    sent = drain(connection)
    feed(connection, frame(int.from_bytes(sent[8:12], "big"), versions_body((PRODUCE, 0, 2), (METADATA, 14, 20))))
    assert connection.versions == {}


@pytest.mark.parametrize(
    ("body", "asked_next"),
    [
        (versions_body((API_VERSIONS, 0, 2), error=35), 2),
        (versions_body(error=35), 0),
        (versions_body((API_VERSIONS, 0, 3), error=35), 0),
    ],
    ids=["range", "nothing", "what was refused"],
)
def test_error_35_leads_to_a_version_that_is_offered(body: bytes, asked_next: int) -> None:
    connection = Connection("me", SECOND, plain=False)
    connection.connected(0)
    sent = drain(connection)
    feed(connection, frame(int.from_bytes(sent[8:12], "big"), body))
    assert connection.state is State.NEGOTIATING
    _, api, version = struct.unpack(">ihh", drain(connection)[:8])
    assert (api, version) == (API_VERSIONS, asked_next)


@pytest.mark.parametrize(
    "body",
    [bytes.fromhex("0023010012000000020000 0000".replace(" ", "")), b"", b"\0", versions_body(error=42)],
    ids=["librdkafka's mock", "nothing", "one byte", "another error"],
)
def test_a_useless_answer_to_api_versions_ends_the_negotiation(body: bytes) -> None:
    connection = Connection("me", SECOND, plain=False)
    connection.connected(0)
    sent = drain(connection)
    with pytest.raises(NegotiationError):
        feed(connection, frame(int.from_bytes(sent[8:12], "big"), body))


def test_responses_may_come_in_pieces_and_together(ready: Connection) -> None:
    ids = [ask(ready) for _ in range(3)]
    drain(ready)
    data = b"".join(frame(number, b"body%d" % number) for number in ids)
    answers = [answer for at in range(len(data)) for answer in feed(ready, data[at : at + 1])]
    assert [answer.request.context for answer in answers] == ids
    more = [ask(ready) for _ in range(2)]
    drain(ready)
    together = feed(ready, b"".join(frame(number, b"") for number in more))
    assert [answer.request.context for answer in together] == more
    assert ready.in_flight == 0


@pytest.mark.parametrize(
    "data",
    [
        frame(999_998, b""),
        struct.pack(">ii", RESPONSE_MAX_BYTES + 1, 999_998),
        struct.pack(">i", -5),
        b"\0\0\0\x02ab",
        b"HTTP/1.1",
    ],
    ids=["unknown id", "too long", "negative", "too short", "http"],
)
def test_nonsense_is_an_error(ready: Connection, data: bytes) -> None:
    ask(ready)
    drain(ready)
    with pytest.raises(WireError):
        feed(ready, data)


def test_what_is_no_response_is_called_so(ready: Connection) -> None:
    ask(ready)
    drain(ready)
    with pytest.raises(WireError, match="not a Kafka response: it begins with b'HTTP', a length of 1213486160 bytes"):
        feed(ready, b"HTTP/1.1")


@pytest.mark.parametrize("cut", [0, 4, 7])
def test_a_response_that_is_too_large_is_named_with_its_size_and_the_limit(ready: Connection, cut: int) -> None:
    """Its size alone does not say what it is: the correlation id does."""
    start = struct.pack(">ii", RESPONSE_MAX_BYTES + 1, ask(ready))
    drain(ready)
    assert feed(ready, start[:cut]) == []
    words = (
        f"metadata of {RESPONSE_MAX_BYTES + 1} bytes, more than {RESPONSE_MAX_BYTES}: "
        "ask for fewer topics in one producer or pipeline"
    )
    with pytest.raises(WireError, match=f"^{words}$"):
        feed(ready, start[cut:])


@pytest.mark.parametrize("api", [PRODUCE, API_VERSIONS])
def test_other_responses_that_are_too_large_are_named_too(api: int) -> None:
    connection = Connection("me", SECOND, plain=True)
    connection.connected(0)
    number = connection._in_flight[0].correlation_id
    if api == PRODUCE:
        drain(connection)
        feed(connection, frame(number, versions_body((PRODUCE, 0, 9))))
        number = connection.next_id()
        connection.send(Request([memoryview(b"x")], 1), number, PRODUCE, 9, None, 0)
    name = {PRODUCE: "Produce", API_VERSIONS: "ApiVersions"}[api]
    with pytest.raises(WireError, match=f"an? {name} response of 5000000 bytes, more than {RESPONSE_MAX_BYTES}: "):
        feed(connection, struct.pack(">ii", 5_000_000, number))


def test_a_response_of_the_largest_size_is_held_once(ready: Connection) -> None:
    """Nothing of its size is beside it while it is received and handed over, and nothing stays."""
    number = ask(ready)
    drain(ready)
    received = memoryview(bytearray(64 * 1024))
    received[:8] = struct.pack(">ii", RESPONSE_MAX_BYTES, number)
    answers: list[Answer] = []
    tracemalloc.start()
    try:
        missing = RESPONSE_MAX_BYTES + 4
        while missing:
            count = min(missing, len(received) - 1000)
            answers += feed(ready, received[:count])
            missing -= count
        held, peak = tracemalloc.get_traced_memory()
        [answer] = answers
        assert (type(answer.frame), len(answer.frame)) == (bytes, RESPONSE_MAX_BYTES)
        assert peak < RESPONSE_MAX_BYTES + 200_000
        assert held > RESPONSE_MAX_BYTES
        del answer, answers
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_metadata_keeps_its_versions_with_a_broker_whose_produce_answers_have_unknown_tags() -> None:
    """Only kio cannot pass over them."""
    connection = Connection("me", SECOND, plain=True, flexible=False)
    connection.connected(0)
    sent = drain(connection)
    feed(connection, frame(int.from_bytes(sent[8:12], "big"), versions_body((PRODUCE, 0, 13), (METADATA, 0, 13))))
    assert connection.versions == {PRODUCE: 8, METADATA: 13}


def test_a_response_before_the_request_is_sent_is_an_error(ready: Connection) -> None:
    """Its buffers would be freed, and filled anew, while the rest of them is still to be sent (law 7)."""
    number = ask(ready)
    ready.sent(sum(map(len, ready.buffers(10))) - 1, 0)
    with pytest.raises(WireError, match="before its request"):
        feed(ready, frame(number, b""))
    assert [request.context for request in ready.close()] == [number]


def test_answers_in_the_wrong_order_are_an_error(ready: Connection) -> None:
    _, second = ask(ready), ask(ready)
    with pytest.raises(WireError, match="not the next one"):
        feed(ready, frame(second, b""))


def test_an_answer_that_was_taken_is_not_lost_when_nonsense_follows(ready: Connection) -> None:
    first, second = ask(ready), ask(ready)
    drain(ready)
    answers = ready.received(memoryview(frame(first, b"") + frame(77, b"")), 0)
    assert next(answers).request.context == first
    with pytest.raises(WireError):
        next(answers)
    assert [request.context for request in ready.close()] == [second]


def test_an_unanswered_request_is_complete_when_it_is_sent(ready: Connection) -> None:
    number = ask(ready, unanswered=True)
    size = sum(map(len, ready.buffers(100)))
    assert ready.sent(size - 1, 0) == []
    assert [request.context for request in ready.sent(1, 0)] == [number]
    assert ready.in_flight == 0


def test_an_answer_to_an_unanswered_request_is_borne_but_not_to_one_never_sent(ready: Connection) -> None:
    """The test brokers answer acks=0."""
    number = ask(ready, unanswered=True)
    drain(ready)
    other = ask(ready)
    drain(ready)
    assert [a.request.context for a in feed(ready, frame(number, b"x") + frame(other, b""))] == [other]
    with pytest.raises(WireError):
        feed(ready, frame(number + 4, b""))


def test_the_oldest_request_has_the_deadline(ready: Connection) -> None:
    deadlines = [ready.deadline_ns]
    first = ask(ready, now=5)
    ask(ready, now=9)
    deadlines.append(ready.deadline_ns)
    drain(ready)
    feed(ready, frame(first, b""))
    deadlines.append(ready.deadline_ns)
    assert deadlines == [None, 5 + SECOND, 9 + SECOND]


def test_what_is_not_sent_has_a_deadline_too(ready: Connection) -> None:
    ask(ready, unanswered=True, now=5)
    assert ready.deadline_ns == 5 + SECOND


def test_close_gives_back_every_request_once_in_order(ready: Connection) -> None:
    numbers = [ask(ready), ask(ready), ask(ready, unanswered=True)]
    ready.sent(3, 0)
    assert [request.context for request in ready.close()] == numbers
    assert ready.close() == []


def test_parts_are_sent_as_they_are(ready: Connection) -> None:
    payload = memoryview(bytearray(100))
    ready.send(Request([payload], 100), ready.next_id(), PRODUCE, 9, None, 0)
    assert ready.buffers(10)[0] is payload
    ready.sent(40, 0)
    assert len(ready.buffers(10)[0]) == 60
