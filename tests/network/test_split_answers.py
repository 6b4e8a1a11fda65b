"""What answers do to split batches, and the order of sending: with queues and requests, but without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from slabpress.network.partition import Batch
from slabpress.network.produce import ProduceContext
from slabpress.results import DELIVERED, EXPIRED_SENT, EXPIRED_UNSENT
from slabpress.shm.states import DONE, IN_FLIGHT, OVERSIZE, PARTIAL, READY
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.network.rig import Rig
from tests.network.test_produce import Bench
from tests.support.limited_broker import HEADER_BYTES
from tests.support.reference_batch import decode_batch

SECOND: Final = 1_000_000_000
MESSAGE_TOO_LARGE: Final = 10
RECORD_LIST_TOO_LARGE: Final = 18
NOT_LEADER: Final = 6


class SplitDesk:
    """Queues, requests and answers of one arena (``Bench``), and its worker."""

    def __init__(self, rigs: list[Rig]) -> None:
        self.rig = rigs[0]
        self.bench = Bench(rigs, (-1, -1))
        self.arena = self.bench.arenas[0]
        self.worker = Compressor(self.rig.arena, make_codec("none", None, 1 << 20), 0, self.rig.control)

    def put(self, partition: int, *values: bytes) -> int:
        """A READY batch of these values in its queue."""
        index = self.rig.send("t", partition, *values)
        for batch in self.arena.follow():
            batch.queue.leader = 1
            self.bench.queues.append(batch, 0)
        return index

    def send(self) -> dict[int, list[bytes | None]]:
        """Send one request; the values in it by partition, none if there is nothing to send."""
        context = self.bench.send()
        if context is None:
            return {}
        found = {}
        for (_, partition), batch in context.batches.items():
            _, records = decode_batch(b"".join(batch.parts))
            found[partition] = [record.value for record in records]
        return found

    def state(self, index: int) -> int:
        return self.rig.arena.batch_states.load(index)

    def make_piece(self) -> None:
        """The coordinator asks for the next piece where it must, and the worker makes it."""
        splits, states = self.arena._splits, self.rig.arena.batch_states
        for index in states.find_all(PARTIAL):
            splits.go_on(index, delivered=self.rig.descriptors.result(index).code == DELIVERED)
            states.store(index, OVERSIZE)
        assert self.worker.work()
        assert self.bench.queues.became_ready(self.arena, self.arena.newly_ready(), 0)

    def end(self) -> None:
        """Let go of the views of the arena that are on the wire."""
        for request in self.bench.connection.close():
            if isinstance(request.context, ProduceContext):
                for batch in request.context.batches.values():
                    batch.parts = []

    def only(self) -> tuple[ProduceContext, Batch]:
        """The one request on the wire and its one batch."""
        [request] = self.bench.connection._in_flight
        assert isinstance(request.context, ProduceContext)
        [batch] = request.context.batches.values()
        return request.context, batch


@pytest.fixture(params=[False, True], ids=["compressing", "direct"])
def desk(request: pytest.FixtureRequest) -> Iterator[SplitDesk]:
    """Two arenas of either kind."""
    with (
        Rig("127.0.0.1:9", start=False, direct=request.param) as first,
        Rig("127.0.0.1:9", start=False, direct=request.param) as second,
    ):
        desk = SplitDesk([first, second])
        yield desk
        desk.end()


@pytest.mark.parametrize("error", [MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE])
def test_several_records_that_are_too_large_are_halved(desk: SplitDesk, error: int) -> None:
    index = desk.put(0, b"a", b"b", b"c", b"d", b"e")
    assert desk.send() == {0: [b"a", b"b", b"c", b"d", b"e"]}
    assert desk.arena.needs_workers == (not desk.rig.arena.is_direct)
    desk.bench.answer((0, error))
    assert desk.arena.needs_workers, "somebody has to cut the pieces"
    assert (desk.state(index), desk.bench.producing.finished, desk.rig.counter("splits")) == (OVERSIZE, 1, 1)
    assert desk.send() == {}
    desk.make_piece()
    assert desk.send() == {0: [b"a", b"b"]}
    desk.bench.answer((0, error))
    assert (desk.state(index), desk.bench.producing.finished, desk.rig.counter("splits")) == (OVERSIZE, 2, 2)
    desk.make_piece()
    assert desk.send() == {0: [b"a"]}
    assert desk.rig.counter("records_failed") == 0


@pytest.mark.parametrize(
    ("error", "limit"), [(MESSAGE_TOO_LARGE, "max.message.bytes"), (RECORD_LIST_TOO_LARGE, "segment.bytes")]
)
@pytest.mark.parametrize("of_several", [False, True])
def test_a_single_record_that_is_too_large_fails_alone(
    desk: SplitDesk, error: int, limit: str, of_several: bool
) -> None:
    index = desk.put(0, *([b"a", b"b"] if of_several else [b"a"]))
    desk.send()
    if of_several:
        desk.bench.answer((0, error))
        desk.make_piece()
        assert desk.send() == {0: [b"a"]}
    desk.bench.answer((0, error))
    assert desk.state(index) == (PARTIAL if of_several else DONE)
    result = desk.rig.descriptors.result(index)
    size = HEADER_BYTES + 8
    name = "MESSAGE_TOO_LARGE" if error == MESSAGE_TOO_LARGE else "RECORD_LIST_TOO_LARGE"
    assert result.text == f"{name}: a single record makes a batch of {size} bytes, over the topic's {limit}"
    assert (result.code, result.retriable, desk.rig.counter("records_failed")) == (error, False, 1)
    if of_several:
        desk.make_piece()
        assert desk.send() == {0: [b"b"]}
        desk.bench.answer((0, 0))
        assert desk.state(index) == DONE
    assert desk.rig.outputs_are_free()


def test_what_is_behind_a_split_batch_waits_for_its_last_piece_and_other_partitions_do_not(desk: SplitDesk) -> None:
    desk.put(0, b"a", b"b", b"c", b"d")
    desk.put(0, b"e")
    desk.put(1, b"x")
    assert desk.send() == {0: [b"a", b"b", b"c", b"d"], 1: [b"x"]}
    desk.bench.answer((0, MESSAGE_TOO_LARGE), (1, 0))
    desk.put(1, b"y")
    desk.put(0, b"f")
    assert desk.send() == {1: [b"y"]}
    desk.bench.answer((1, 0))
    for piece in ([b"a", b"b"], [b"c", b"d"]):
        desk.make_piece()
        desk.put(2, b"z")
        assert desk.send() == {0: piece, 2: [b"z"]}
        assert desk.send() == {}
        desk.bench.answer((2, 0), (0, 0))
    for value in (b"e", b"f"):
        assert desk.send() == {0: [value]}
        desk.bench.answer((0, 0))
    assert desk.send() == {}
    assert desk.rig.outputs_are_free()


def test_a_piece_is_tried_again_with_the_same_bytes_and_a_backoff_of_its_own(desk: SplitDesk) -> None:
    index = desk.put(0, b"a", b"b")
    for _ in range(3):  # the whole batch meets other errors first
        desk.send()
        desk.bench.answer((0, NOT_LEADER))
        desk.bench.queues.tick(SECOND)
    desk.send()
    desk.bench.answer((0, MESSAGE_TOO_LARGE))
    desk.make_piece()
    desk.bench.queues.tick(SECOND)
    assert desk.send() == {0: [b"a"]}
    context, batch = desk.only()
    piece = b"".join(batch.parts)
    assert (batch.failures, desk.state(index)) == (0, IN_FLIGHT)
    desk.bench.producing.lost(context, "gone", 0)
    assert (batch.failures, desk.state(index)) == (1, READY)
    assert desk.send() == {}
    desk.bench.queues.tick(SECOND)
    assert desk.send() == {0: [b"a"]}
    assert b"".join(batch.parts) == piece


def test_a_batch_is_split_only_when_all_before_it_have_their_results(desk: SplitDesk) -> None:
    """With several on the wire, the later one's pieces would hold the room that the earlier one's next piece needs."""
    desk.put(0, b"first")
    desk.arena.in_flight_limit = 2
    desk.send()
    desk.bench.answer((0, 0))  # its leader knows the sequences from now on
    early, late = desk.put(0, b"a", b"b"), desk.put(0, b"c", b"d")
    assert [desk.send(), desk.send()] == [{0: [b"a", b"b"]}, {0: [b"c", b"d"]}]
    desk.bench.answer((0, MESSAGE_TOO_LARGE))
    desk.bench.answer((0, MESSAGE_TOO_LARGE))
    assert (desk.state(early), desk.state(late)) == (OVERSIZE, READY)
    for piece in (b"a", b"b"):
        desk.make_piece()
        assert desk.send() == {0: [piece]}
        assert desk.send() == {}
        desk.bench.answer((0, 0))
    assert desk.state(early) == DONE
    assert desk.send() == {0: [b"c", b"d"]}, "at once, whole, and as it was"
    desk.bench.answer((0, MESSAGE_TOO_LARGE))
    assert desk.state(late) == OVERSIZE


def test_a_piece_whose_delivery_timeout_has_ended_ends_the_rest_of_its_batch(desk: SplitDesk) -> None:
    index = desk.put(0, b"a", b"b", b"c", b"d")
    desk.send()
    desk.bench.answer((0, MESSAGE_TOO_LARGE))
    desk.make_piece()
    assert desk.send() == {0: [b"a", b"b"]}
    desk.bench.answer((0, 0))
    assert desk.state(index) == PARTIAL
    desk.make_piece()
    later = desk.arena.delivery_timeout_ms * 1_000_000 + desk.rig.descriptors.sealed(index).created_ns
    desk.bench.queues.tick(later)
    desk.bench.producing.report_expired()
    assert desk.state(index) == DONE
    result = desk.rig.descriptors.result(index)
    assert result.code in (EXPIRED_UNSENT, EXPIRED_SENT)
    assert [desk.rig.counter(name) for name in ("records_delivered", "records_failed")] == [2, 2]
    assert desk.rig.outputs_are_free()
    assert desk.send() == {}
