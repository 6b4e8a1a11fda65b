"""Killed and stopped children: all producers go on, and a new child serves the arenas that there are."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any, Final

import pytest

from slabpress import DeliveryError, Pipeline, ProcessError, Producer
from slabpress.pipeline import coordinator
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import (
    WATCHDOG_S,
    Sender,
    arena_of,
    begin,
    held,
    holders,
    mapped,
    processes,
    read_numbers,
    served,
    stopped,
    supervisor_of,
    until,
)
from tests.support.mock_cluster import MockCluster

CHILDREN: Final = ("network process", "worker 0", "worker 1")
# Without compression no worker has anything to do with a batch.
COMPRESSED: Final[dict[str, Any]] = {"compression_type": "lz4"}


def _kill(pipeline: Pipeline, child: str) -> None:
    """Kill a child and wait until another has its name."""
    pid = processes(pipeline)[child]
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes(pipeline).get(child, pid) != pid, f"another {child}")


def _arenas(*producers: Producer) -> set[int]:
    return {arena_of(producer) for producer in producers}


@pytest.mark.parametrize("killed", [*CHILDREN, "all"])
def test_a_new_child_serves_the_arenas_that_there_are(
    sink: MockCluster, make_pipeline: MakePipeline, topic: str, killed: str
) -> None:
    """Also one that was opened while the old one ran, and not one that was closed meanwhile."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer(compression_type=codec) for codec in ("lz4", "zstd", "none", "gzip")]
    closed = producers.pop(1)
    begin(closed, "t")
    closed.close()
    senders = [Sender(producer, topic, f"p{place}", window=50) for place, producer in enumerate(producers)]
    for sender in senders:
        sender.goes_on()
    for child in CHILDREN if killed == "all" else [killed]:
        _kill(pipeline, child)
    for sender in senders:
        sender.goes_on()
    until(lambda: served(pipeline, _arenas(*producers)), "every child to serve every arena")
    assert all(held(pid) == _arenas(*producers) for pid in processes(pipeline).values())
    # What comes and goes now reaches the new child as it reached the old one.
    late = pipeline.producer()
    begin(late, "t")
    until(lambda: served(pipeline, _arenas(late, *producers)), "every child to serve the new arena too")
    late.close()
    until(lambda: served(pipeline, _arenas(*producers)), "every child to let it go")
    for sender in senders:
        sender.end()
    found = read_numbers(sink.bootstrap_servers, topic)
    for sender in senders:
        # A batch whose answer died with the process is sent again, and the mock cluster does not know it again.
        numbers = {number for partition in found[sender.name].values() for number in partition}
        assert numbers == set(range(sender.sent))


@pytest.mark.parametrize("child", CHILDREN)
def test_a_producer_that_is_opened_while_a_child_is_dead_works(
    sink: MockCluster, make_pipeline: MakePipeline, child: str
) -> None:
    """Killed again and again a child is replaced after a pause only: both open and close in between."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    before = pipeline.producer(**COMPRESSED)
    begin(before, "t")
    for _ in range(2):
        _kill(pipeline, child)
    os.kill(processes(pipeline)[child], signal.SIGKILL)
    until(lambda: child not in processes(pipeline), "the pause before the next one")
    gone, late = pipeline.producer(), pipeline.producer(linger_ms=0, **COMPRESSED)
    gone_arena = arena_of(gone)
    gone.close()
    assert child not in processes(pipeline)
    begin(late, "t")
    until(lambda: served(pipeline, _arenas(before, late)), "every child to serve both")
    assert holders(pipeline, gone_arena) == []
    begin(before, "t")


@pytest.mark.parametrize("child", CHILDREN)
def test_a_producer_that_is_opened_while_a_child_is_stopped_works_when_it_goes_on(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    monkeypatch.setattr(coordinator, "END_TIMEOUT_S", 0.2)  # close() may wait for the stopped one
    pipeline = make_pipeline(sink.bootstrap_servers)
    before = pipeline.producer(**COMPRESSED)
    begin(before, "t")
    with stopped(processes(pipeline)[child]):
        gone, late = pipeline.producer(), pipeline.producer(linger_ms=0, **COMPRESSED)
        gone_arena = arena_of(gone)
        gone.close()
        sender = threading.Thread(target=begin, args=(late, "t"))
        sender.start()
        if child != "network process":
            sender.join(WATCHDOG_S)  # the other worker does it
            assert late.stats().records_delivered == 1
    sender.join(WATCHDOG_S)
    assert late.stats().records_delivered == 1
    until(lambda: served(pipeline, _arenas(before, late)), "every child to serve both")
    until(lambda: holders(pipeline, gone_arena) == [], "the third to be let go")


def test_close_does_not_wait_for_a_child_that_dies_meanwhile(
    sink: MockCluster, make_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Its mappings have died with it."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    producer = pipeline.producer()
    arena = arena_of(producer)
    until(lambda: all(arena in mapped(pid) for pid in processes(pipeline).values()), "every child to have mapped it")
    worker = processes(pipeline)["worker 1"]
    with stopped(worker):
        closing = threading.Thread(target=producer.close)
        closing.start()
        until(lambda: holders(pipeline, arena) == ["job", "worker 1"], "only the stopped worker to be left")
        os.kill(worker, signal.SIGKILL)
        closing.join(WATCHDOG_S)
        assert not closing.is_alive()
        until(lambda: processes(pipeline).get("worker 1", worker) != worker, "another worker")
    assert holders(pipeline, arena) == []
    assert "still in use" not in caplog.text


def test_more_news_than_a_stopped_childs_channel_holds_reaches_it_when_it_goes_on(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    """Nobody sends or closes anything meanwhile, so nothing else wakes the coordinator's thread."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    network = supervisor_of(pipeline).children[0]
    assert network.channel is not None
    network.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is: a few lines
    first = pipeline.producer()
    begin(first, "t")
    until(lambda: not first.stats().batches["reporting"], "everything to be at rest")
    producers = [first]
    with stopped(processes(pipeline)["network process"]):
        while not network.outbox:
            producers.append(pipeline.producer(max_block_ms=3000))
    assert producers[-1].send("t", b"x").result(WATCHDOG_S).topic == "t"
    assert mapped(processes(pipeline)["network process"]) == _arenas(*producers)


def test_a_child_that_dies_again_and_again_at_its_start_ends_every_producer_with_its_words(
    sink: MockCluster, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer(), pipeline.producer(linger_ms=60_000), pipeline.producer()]
    begin(producers[0], "t")
    handle = producers[1].send("t", b"lingers")
    network = supervisor_of(pipeline).children[0]
    monkeypatch.setattr(network, "role", network.role._replace(module="slabpress.no_such_module"))
    os.kill(processes(pipeline)["network process"], signal.SIGKILL)
    words = r"No module named slabpress\.no_such_module: it died 3 times before it worked"
    with pytest.raises(DeliveryError, match=words):
        handle.result(WATCHDOG_S)
    until(lambda: all(producer._sender.refusal for producer in producers), "every producer to hear of it")
    for producer in producers:
        with pytest.raises(ProcessError, match=words):
            producer.send("t", b"x")
    with pytest.raises(ProcessError, match=words):
        pipeline.producer()
    assert processes(pipeline) == {}
    pipeline.close()
