"""What the kernel may still take from the arena is not free: what is free is written over, and nothing arrives harmed.

With both kinds of arena: what is sent are output buffers, or the slabs themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.network.fake_broker import FakeBroker, PartitionAnswer
from tests.network.rig import Record, Rig
from tests.support.proxy import Proxy
from tests.support.reference_batch import decode_batch

pytestmark = pytest.mark.timeout(60)

NOT_LEADER = 6
SIZE = 100_000
# Slow enough that most of a request is not taken yet while the next look comes, and fast enough for a test.
SLOW = 3_000_000


@pytest.fixture
def proxy(fake: FakeBroker) -> Iterator[Proxy]:
    """What stands before the broker, taking bytes slowly."""
    with Proxy("127.0.0.1", fake.port) as made:
        fake.advertised = made.port
        yield made


@pytest.fixture(params=[False, True], ids=["compressing", "direct"])
def rig(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Rig]:
    """An arena of either kind, whose socket takes little at a time."""
    settings = {"send_buffer_bytes": 4096}
    delivery = {"max_request_size": 3_000_000}
    with Rig(proxy.address, slabs=100, delivery=delivery, settings=settings, direct=request.param) as made:
        made.know("t")
        proxy.up.bytes_per_s = SLOW
        yield made


def send(rig: Rig, batches: int) -> list[int]:
    """Batches of several blocks each, no two alike."""
    made = []
    for number in range(batches):
        made.append(rig.seal("t", number % 4, [Record(bytes([number]) * SIZE)]))
        rig.compress(made[-1])
    return made


def results(rig: Rig, sealed: list[int]) -> list[int]:
    """Wait for all results; whenever something happens, everything that is free is written over."""
    codes: list[int] = []

    def scribbled_and_done(index: int) -> bool:
        rig.scribble_on_what_is_free()
        return rig.done(index)

    for index in sealed:
        rig.until(lambda index=index: scribbled_and_done(index), f"batch {index}")  # type: ignore[misc]
        codes.append(rig.result(index).code)
    return codes


def check(fake: FakeBroker, batches: int) -> None:
    """Every batch that came whole has its bytes: ``decode_batch`` checks the sum."""
    found = {decode_batch(data)[1][0].value for _, _, data in fake.records()}
    assert found == {bytes([number]) * SIZE for number in range(batches)}


def test_a_connection_that_takes_bytes_slowly(rig: Rig, fake: FakeBroker) -> None:
    sealed = send(rig, 8)
    assert results(rig, sealed) == [0] * 8
    check(fake, 8)
    assert rig.outputs_are_free()


def test_a_retry_sends_the_same_bytes_again(rig: Rig, fake: FakeBroker) -> None:
    refused = iter(range(6))
    fake.on_produce = lambda _topic, _partition: PartitionAnswer(NOT_LEADER if next(refused, None) is not None else 0)
    sealed = send(rig, 8)
    assert results(rig, sealed) == [0] * 8
    assert rig.counter("retries") >= 4
    check(fake, 8)
    assert rig.outputs_are_free()


def test_a_connection_that_is_cut_amid_a_request(rig: Rig, fake: FakeBroker, proxy: Proxy) -> None:
    for cut in (50_000, 150_000, 290_000):
        proxy.cut_after(cut, "up")
        sealed = send(rig, 8)
        assert results(rig, sealed) == [0] * 8
    assert rig.counter("retries") >= 3
    check(fake, 8)
    assert rig.outputs_are_free()


def test_what_nobody_answers_is_free_when_its_connection_is_closed_and_not_before(rig: Rig, fake: FakeBroker) -> None:
    fake.silent = True
    sealed = send(rig, 4)
    held = [block for index in sealed for block in rig.arena.outputs.chain(rig.descriptors.output(index).first_output)]
    rig.until(lambda: len(fake.produced()) >= 1, "a request to have come whole")
    rig.scribble_on_what_is_free()
    assert not any(map(rig.is_free, held))
    fake.silent = False
    fake.cut()
    assert results(rig, sealed) == [0] * 4
    assert rig.counter("retries") >= 1
    check(fake, 4)
    assert rig.outputs_are_free()
