"""A producer that is closed at once while its batches are on the wire: it loses them, and nobody else loses anything.

The broker reads a request, and with it what follows on the connection, only when the test lets it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from slabpress import FlushTimeoutError, Pipeline, Producer
from slabpress.pipeline import coordinator
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import WATCHDOG_S, arena_of, holders, processes, until
from tests.integration.pipeline.withheld import WithheldBroker
from tests.network.fake_broker import PartitionAnswer
from tests.support.reference_batch import decode_batch

NONE, INVALID_RECORD, NOT_LEADER = 0, 87, 6
BIG: Final = random.Random(1).randbytes(900_000)


@pytest.fixture
def broker() -> Iterator[WithheldBroker]:
    """A broker that answers when it is allowed to."""
    with WithheldBroker({"t": 4}) as broker:
        yield broker


Two = Callable[..., tuple[Pipeline, Producer, Producer]]


@pytest.fixture(params=["lz4", "none"], ids=["compressing", "direct"])
def two(request: pytest.FixtureRequest, broker: WithheldBroker, make_pipeline: MakePipeline) -> Iterator[Two]:
    """A function that makes a pipeline and two producers that have delivered one record each.

    What is on the wire is in output buffers, or in the slabs themselves.

    In the end its processes are those that it began with: none has died of what the test did.
    """
    made: list[tuple[Pipeline, dict[str, int]]] = []

    def make(**settings: Any) -> tuple[Pipeline, Producer, Producer]:
        pipeline = make_pipeline(broker.address, workers=1, **settings)
        made.append((pipeline, processes(pipeline)))
        pair = [pipeline.producer(buffer_memory="4MiB", linger_ms=0, compression_type=request.param) for _ in range(2)]
        for producer in pair:
            broker.allow()
            producer.send("t", b"first", partition=0).result(WATCHDOG_S)
        return pipeline, pair[0], pair[1]

    yield make
    for pipeline, pids in made:
        assert processes(pipeline) == pids


def _state(producer: Producer, state: str) -> int:
    return producer.stats().batches[state]


def _close_at_once(producer: Producer, records: int) -> None:
    with pytest.raises(FlushTimeoutError, match=rf"closed after 0 s with {records} records not acknowl") as caught:
        producer.close(timeout=0)
    assert caught.value.records == records


def _check_unharmed(broker: WithheldBroker, producer: Producer) -> None:
    """It goes on over the same connection, and nothing of it was sent twice."""
    broker.allow()
    assert producer.send("t", b"last", partition=3).result(WATCHDOG_S).partition == 3
    network = producer.stats().network
    assert (network["retries"], network["reconnects"], network["records_failed"]) == (0, 0, 0)


@pytest.mark.parametrize("error", [NONE, NOT_LEADER, INVALID_RECORD])
def test_the_answer_to_a_request_of_which_a_part_is_nobodys_any_more(
    broker: WithheldBroker, two: Two, error: int
) -> None:
    """Two producers' batches in one request: the one is closed, whatever the broker says of its part."""
    pipeline, other, closing = two(max_in_flight_requests_per_connection=1)
    arena = arena_of(closing)
    broker.on_produce = lambda _, partition: PartitionAnswer(error=error if partition == 2 else 0)
    in_front = other.send("t", b"in front", partition=0)
    until(lambda: broker.partitions()[2:] == [[0]], "the request in front to be read")
    handle = other.send("t", b"x", partition=1)
    lost = closing.send_many("t", [b"a", b"b", b"c"], partition=2)
    until(lambda: _state(other, "ready") == _state(closing, "ready") == 1, "both to wait for the connection")
    broker.allow()
    until(lambda: broker.partitions()[3:] == [[1, 2]], "the request that they share")
    assert in_front.result(WATCHDOG_S).partition == 0
    _close_at_once(closing, 3)
    until(lambda: holders(pipeline, arena) == [], "the arena to be let go")
    assert "the producer was closed before they were acknowledged" in str(lost.exceptions(0)[0])
    broker.allow()
    assert handle.result(WATCHDOG_S).partition == 1
    _check_unharmed(broker, other)
    assert broker.partitions()[4:] == [[3]], "what nobody waits for is not sent again"


def test_a_connection_that_breaks_loses_nothing_but_the_closed_producers_records(
    broker: WithheldBroker, two: Two
) -> None:
    pipeline, other, closing = two()
    arena = arena_of(closing)
    handle = other.send("t", b"x", partition=1)
    until(lambda: broker.partitions()[2:] == [[1]], "the first request")
    closing.send("t", b"y", partition=2)
    until(lambda: _state(closing, "in_flight") == 1, "the second request")
    _close_at_once(closing, 1)
    until(lambda: holders(pipeline, arena) == [], "the arena to be let go")
    broker.cut()
    broker.allow(3)
    assert handle.result(WATCHDOG_S).partition == 1
    assert other.send("t", b"z", partition=1).result(WATCHDOG_S).partition == 1
    assert broker.partitions()[2:] == [[1], [1], [1]], "the closed producer's batch is not sent again"
    assert other.stats().network["retries"] == 1


@pytest.mark.parametrize("broken", [False, True], ids=["sent in the end", "connection breaks"])
def test_an_arena_stays_mapped_as_long_as_a_socket_takes_bytes_from_it(
    broker: WithheldBroker,
    two: Two,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: bool,
) -> None:
    """A request of 900 KB that the kernel has taken a part of: its end must not be another producer's bytes."""
    monkeypatch.setattr(coordinator, "END_TIMEOUT_S", 0.2)
    pipeline, other, closing = two(send_buffer_bytes=4096)
    arena = arena_of(closing)
    handle = other.send("t", b"x", partition=1)
    until(lambda: broker.partitions()[2:] == [[1]], "the request in front to be read")
    closing.send("t", BIG, partition=2)
    until(lambda: _state(closing, "in_flight") == 1, "the large request to be begun")
    _close_at_once(closing, 1)
    assert holders(pipeline, arena) == ["network process"]
    assert "a closed producer's memory is still in use by network process" in caplog.text
    # Another arena may get the address that was unmapped too early.
    later = pipeline.producer(buffer_memory="4MiB", linger_ms=0)
    if broken:
        broker.cut()
    broker.allow(3)
    assert later.send("t", b"y" * 500_000, partition=3).result(WATCHDOG_S).partition == 3
    until(lambda: holders(pipeline, arena) == [], "the arena to be let go")
    assert handle.result(WATCHDOG_S).partition == 1
    big = [batch for _, partition, batch in broker.records() if partition == 2]
    assert [decode_batch(batch)[1][0].value for batch in big] == ([] if broken else [BIG])
    if not broken:
        _check_unharmed(broker, other)
    other.flush(WATCHDOG_S)


@pytest.mark.xfail(strict=True, reason="arenas are counted: one that is still mapped is taken for the other's")
def test_an_arena_that_cannot_be_let_go_yet_holds_up_no_other_producers_end(
    broker: WithheldBroker, two: Two, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One close() has run out of time; the next ones wait for nothing, and accuse nobody."""
    monkeypatch.setattr(coordinator, "END_TIMEOUT_S", 0.2)
    pipeline, other, closing = two(send_buffer_bytes=4096)
    stuck = arena_of(closing)
    handle = other.send("t", b"x", partition=1)
    until(lambda: broker.partitions()[2:] == [[1]], "the request in front to be read")
    closing.send("t", BIG, partition=2)
    until(lambda: _state(closing, "in_flight") == 1, "the large request to be begun")
    _close_at_once(closing, 1)
    for _ in range(3):
        pipeline.producer().close()
    assert caplog.text.count("still in use") == 1
    assert holders(pipeline, stuck) == ["network process"]
    broker.allow(2)
    until(lambda: holders(pipeline, stuck) == [], "the arena to be let go")
    assert handle.result(WATCHDOG_S).partition == 1


def test_batches_that_wait_for_a_worker_or_a_connection_go_with_their_producer(
    broker: WithheldBroker, two: Two
) -> None:
    """Some open, some sealed, some compressed, none on the wire: nothing of them is ever sent."""
    pipeline, other, closing = two(max_in_flight_requests_per_connection=1)
    arena = arena_of(closing)
    handle = other.send("t", b"x", partition=1)
    until(lambda: broker.partitions()[2:] == [[1]], "the request that holds the connection")
    for number in range(300):
        closing.send("t", b"%d" % number * 100, partition=2)
    until(lambda: _state(closing, "ready") > 0, "a batch to be compressed")
    _close_at_once(closing, 300)
    until(lambda: holders(pipeline, arena) == [], "the arena to be let go")
    broker.allow()
    assert handle.result(WATCHDOG_S).partition == 1
    _check_unharmed(broker, other)
    assert broker.partitions()[2:] == [[1], [3]]
