"""The end of a pipeline: it closes every producer within one deadline, says what went wrong, and leaves nothing."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from slabpress import (
    CallbackFlushError,
    DeliveryError,
    DeliveryHandle,
    FlushTimeoutError,
    Pipeline,
    Producer,
    ProducerClosedError,
    SlabpressError,
)
from slabpress.pipeline.coordinator import Coordinator
from slabpress.pipeline.session import Session
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import WATCHDOG_S, begin, processes, stopped, until
from tests.network.fake_broker import PRODUCE
from tests.support.mock_cluster import MockCluster

INVALID_RECORD = 87


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_close_delivers_what_lingers_in_every_producer(sink: MockCluster, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer(linger_ms=60_000) for _ in range(5)]
    handles = [producer.send("t", b"x", partition=number % 4) for producer in producers for number in range(20)]
    assert not any(handle.done() for handle in handles)
    pipeline.close()
    assert all(handle.exception(0) is None for handle in handles)
    assert processes(pipeline) == {}
    for producer in producers:
        with pytest.raises(ProducerClosedError, match="the producer is closed"):
            producer.send("t", b"x")
        assert producer.stats().records_delivered == 20
        producer.close()
    with pytest.raises(ProducerClosedError, match="the pipeline is closed"):
        pipeline.producer()
    pipeline.close()


def test_a_with_block_ends_with_everything_delivered(sink: MockCluster) -> None:
    with Pipeline(sink.bootstrap_servers, workers=1) as pipeline:
        producers = [pipeline.producer(buffer_memory="1MiB", linger_ms=60_000) for _ in range(2)]
        handles = [producer.send("t", b"x") for producer in producers]
    assert [handle.result(0).topic for handle in handles] == ["t", "t"]
    assert processes(pipeline) == {}


def test_all_producers_share_the_deadline_and_the_first_error_is_raised(
    sink: MockCluster, make_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is stopped: the first to be closed waits until the deadline, for the others nothing is left."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer() for _ in range(3)]
    for producer in producers:
        begin(producer, "t")
    timeouts: list[float | None] = []
    close = Producer.close

    def noted(producer: Producer, timeout: float | None = None) -> None:
        timeouts.append(timeout)
        close(producer, timeout)

    monkeypatch.setattr(Producer, "close", noted)
    with stopped(sink.pid):
        handles = [producer.send_many("t", [b"x"] * (1 + place)) for place, producer in enumerate(producers)]
        with pytest.raises(FlushTimeoutError, match=r"closed after 0\.[23]\d* s with \d records not ack") as caught:
            pipeline.close(0.3)
    assert len(timeouts) == 3
    assert timeouts[0] is not None
    assert 0.0 < timeouts[0] <= 0.3
    assert timeouts[1:] == [0.0, 0.0]
    assert all(handle.exceptions(0) for handle in handles)
    logged = _errors(caplog)
    assert len(logged) == 2
    assert all(text.startswith("closing a pipeline: the producer was closed after 0.0 s with") for text in logged)
    said = sorted(int(text.split(" records")[0].split()[-1]) for text in (str(caught.value), *logged))
    assert said == [1, 2, 3]
    assert processes(pipeline) == {}


def test_a_stuck_producer_takes_none_of_the_time_of_those_that_could_deliver(
    pair: MockCluster, make_pipeline: MakePipeline
) -> None:
    """The leader of its partition is down, and it waits for that until the deadline; what lingers elsewhere is sent."""
    pipeline = make_pipeline(pair.bootstrap_servers, reconnect_backoff_max_ms=50)
    stuck, *others = (pipeline.producer(linger_ms=linger) for linger in (0, *[60_000] * 6))
    begin(stuck, "first")
    handles = [producer.send("second", b"x") for producer in others]
    pair.set_down(1)
    try:
        stuck.send_many("first", [b"x"] * 3)
        with pytest.raises(FlushTimeoutError, match="with 3 records not acknowledged"):
            pipeline.close(2.0)
    finally:
        pair.set_up(1)
    assert [handle.exception(0) for handle in handles] == [None] * 6


def test_failures_that_nobody_has_looked_at_are_raised_when_everything_is_closed(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    failing, fine = pipeline.producer(linger_ms=0), pipeline.producer(linger_ms=60_000)
    for producer in (failing, fine):
        producer.send("t", b"x")
        producer.flush()
    sink.push_request_errors(PRODUCE, [INVALID_RECORD])
    handle = failing.send_many("t", [b"x"] * 3, partition=0)
    until(handle.done, "the broker to refuse it")
    other = fine.send("t", b"x")
    with pytest.raises(DeliveryError, match=r"3 records were not delivered; the first error: .*INVALID_RECORD"):
        pipeline.close()
    assert other.result(0).topic == "t"
    assert processes(pipeline) == {}


def test_close_in_a_callback_raises_instead_of_waiting_for_itself(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    caught: list[SlabpressError] = []

    def close_inside(_: DeliveryHandle) -> None:
        try:
            pipeline.close()
        except CallbackFlushError as error:
            caught.append(error)

    producer, other = pipeline.producer(), pipeline.producer()
    producer.send("t", b"x", on_delivery=close_inside)
    producer.flush(WATCHDOG_S)
    assert len(caught) == 1
    begin(producer, "t")
    begin(other, "t")
    # Another producer may be closed there: its end waits for nothing of this one.
    producer.send("t", b"x", on_delivery=lambda _: other.close())
    producer.flush(WATCHDOG_S)
    with pytest.raises(ProducerClosedError):
        other.send("t", b"x")


def test_a_block_that_fails_shows_its_own_error_and_does_not_wait_for_an_outage(
    sink: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        with Pipeline(sink.bootstrap_servers, workers=1) as pipeline:
            kept.append(pipeline)
            kept.extend(pipeline.producer(buffer_memory="1MiB", exit_flush_ms=100) for _ in range(2))
            for producer in kept[1:]:
                begin(producer, "t")
            sleeping.append(stopped(sink.pid))
            sleeping[0].__enter__()
            for producer in kept[1:]:
                producer.send("t", b"x")
            raise KeyError("the user's mistake")

    kept: list[Any] = []
    sleeping: list[Any] = []
    try:
        with pytest.raises(KeyError, match="the user's mistake"):
            fail()
    finally:
        sleeping[0].__exit__(None, None, None)
    assert "closing the pipeline after an error: the producer was closed after 0." in caplog.text
    assert len(_errors(caplog)) == 1
    assert processes(kept[0]) == {}


def test_an_interrupted_close_leaves_nothing_either(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it waits for the first producer's records."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer() for _ in range(3)]
    for producer in producers:
        begin(producer, "t")

    def interrupted(session: Session, timeout_s: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "flush", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            pipeline.close()
        monkeypatch.undo()
        pipeline.close()
        left = processes(pipeline)
    finally:
        monkeypatch.undo()
        for producer in producers:
            producer.close()
        if processes(pipeline):
            pipeline._coordinator.close()
    assert left == {}


def test_a_producer_that_is_made_while_the_pipeline_is_closed_is_closed_as_well(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    opened = Coordinator.open

    def open_while_closing(*arguments: Any) -> Session:
        session = opened(*arguments)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        closing.join(WATCHDOG_S)
        return session

    monkeypatch.setattr(Coordinator, "open", open_while_closing)
    try:
        producer = pipeline.producer()
    except ProducerClosedError:
        return  # as good
    with pytest.raises(ProducerClosedError):
        producer.send("t", b"x")
    producer.close()


def test_producers_and_pipeline_may_be_closed_from_many_threads_at_once(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer(linger_ms=60_000) for _ in range(8)]
    handles = [producer.send("t", b"x") for producer in producers]
    failures: list[BaseException] = []

    def close(what: Producer | Pipeline) -> None:
        try:
            what.close(WATCHDOG_S)
        except BaseException as failure:  # noqa: BLE001 - looked at below
            failures.append(failure)

    threads = [
        threading.Thread(target=close, args=(what,)) for what in (*producers[:4], pipeline, *producers, pipeline)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()
    assert failures == []
    assert all(handle.exception(0) is None for handle in handles)
    assert processes(pipeline) == {}
