"""Split batches in the network process: whatever store it dies before, a successor goes on with the same pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from slabpress.results import DELIVERED, EXPIRED_SENT, EXPIRED_UNSENT
from slabpress.shm.states import DONE, OVERSIZE, PARTIAL
from tests.shm.faults import Killed, Life
from tests.support.limited_broker import HEADER_BYTES, Arrival, Network
from tests.support.split_bench import SplitBench, numbered, split_bench

ALIKE: Final = numbered(8, 20)
ONE_LARGE: Final = [b"a" * 10, b"b" * 150, b"c" * 10, b"d" * 10]
# Of ALIKE two fit, of ONE_LARGE all but the large one.
LIMIT: Final = HEADER_BYTES + 60
SCENES: Final = {
    "the whole is too large": (ALIKE, 0, OVERSIZE),
    "a piece is too large": (ALIKE, 1, OVERSIZE),
    "a piece is delivered": (ALIKE, 2, PARTIAL),
    "the last piece is delivered": (ALIKE, 5, DONE),
    "a single record is too large": (ONE_LARGE, 3, PARTIAL),
    "a piece after one that failed is delivered": (ONE_LARGE, 4, PARTIAL),
}


# Each test of this module runs with both kinds of arena; there are many scenes a test, so it is no argument of each.
_KIND: Final = {"direct": False}


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["compressing", "direct"])
def kind(request: pytest.FixtureRequest) -> None:
    """The kind of arena."""
    _KIND["direct"] = request.param


@contextlib.contextmanager
def scene(values: list[bytes], answers: int) -> Iterator[SplitBench]:
    """A bench whose batch is READY after so many answers."""
    with split_bench(LIMIT, direct=_KIND["direct"]) as bench:
        bench.seal(values)
        for _ in range(answers):
            make_ready(bench)
            step(bench.network)
        make_ready(bench)
        yield bench


def make_ready(bench: SplitBench) -> None:
    bench.take_results()
    bench.workers[0].work()
    bench.network.follow()
    assert bench.network.heads()


def step(network: Network) -> None:
    [batch] = network.heads()
    network.answer(batch, network.send(batch))


def die(bench: SplitBench, life: int, act: Callable[[Network], None]) -> bool:
    """Take over and act, in a process that dies before its ``life``-th store; whether it came to that."""
    dying = bench.heir(Life(life))
    try:
        dying.batches.take_over()
        dying.follow()
        act(dying)
    except Killed:
        return True
    return False


def go_on(bench: SplitBench, *, died: bool) -> None:
    """A successor takes over and brings everything to its end."""
    bench.check_conservation(somebody_is_dead=died)
    bench.heir().batches.take_over()
    bench.check_conservation()
    # What is free may be another batch's by now.
    bench.scribble_on_free_blocks()
    bench.run(checking=True)
    bench.check_told()
    bench.check_all_free()


def undisturbed(values: list[bytes]) -> list[Arrival]:
    with split_bench(LIMIT, direct=_KIND["direct"]) as bench:
        bench.seal(values)
        bench.run()
        return bench.broker.arrivals


@pytest.mark.parametrize("name", SCENES)
def test_killed_before_any_store_of_an_answer_a_successor_goes_on_with_the_same_pieces(name: str) -> None:
    """What is sent is what would have been sent anyway, and at most the piece on the wire comes once more."""
    values, answers, after = SCENES[name]
    usual = undisturbed(values)
    once_more = [*usual[: answers + 1], *usual[answers:]]
    died, life = True, 0
    while died:
        with scene(values, answers) as bench:
            died = die(bench, life, step)
            if not died:
                assert bench.arena.batch_states.load(0) == after
            go_on(bench, died=died)
            assert bench.broker.arrivals in (usual, once_more), f"died before store {life}"
        life += 1
    assert life > 8


def expire(network: Network) -> None:
    network.expire(network.heads()[0])


@pytest.mark.parametrize("act", [step, expire])
@pytest.mark.parametrize("name", SCENES)
def test_a_second_death_while_a_successor_takes_over_loses_nothing(name: str, act: Callable[[Network], None]) -> None:
    values, answers, _ = SCENES[name]
    died, life, most = True, 0, 0
    while died:
        died_again, second = True, 0
        while died_again:
            with scene(values, answers) as bench:
                died = die(bench, life, act)
                died_again = die(bench, second, lambda _: None)
                go_on(bench, died=died_again)
            second += 1
        most = max(most, second)
        life += 1
    assert most >= 3


@pytest.mark.parametrize("answers", [0, 2, 5], ids=["whole", "piece", "last piece"])
def test_killed_before_any_store_of_an_expiry_no_record_is_lost(answers: int) -> None:
    """What has expired stays so; what has no result yet when the successor comes is sent by it."""
    had_results = 2 * max(0, answers - 2)
    died, life, sent = True, 0, set[int]()
    while died:
        with scene(ALIKE, answers) as bench:
            died = die(bench, life, expire)
            go_on(bench, died=died)
            codes = [told.result.code for told in bench.told[1] for _ in range(told.records)]
        assert set(codes) <= {DELIVERED, EXPIRED_SENT, EXPIRED_UNSENT}
        assert set(codes[:had_results]) <= {DELIVERED}
        delivered = [value for value, code in zip(ALIKE, codes, strict=True) if code == DELIVERED]
        assert bench.broker.values() == delivered
        sent.add(len(delivered))
        life += 1
    assert sent >= {len(ALIKE), had_results}


def test_a_successor_follows_a_split_batch_that_is_older_than_the_ring() -> None:
    """One partition's batch is being split while so many of another's come and go that its entry is used again."""
    with split_bench(LIMIT, batches=4, direct=_KIND["direct"]) as bench:
        bench.seal(ALIKE)
        make_ready(bench)
        step(bench.network)
        for number in range(bench.arena.geometry.seal_ring_entries + 1):
            bench.seal([b"%d" % number], 1)
            while bench.workers[0].work():
                pass
            bench.network.follow()
            [other] = [batch for batch in bench.network.heads() if batch.queue.number == 1]
            bench.network.answer(other, bench.network.send(other))
            bench.take_results()
        go_on(bench, died=False)
        assert bench.broker.values() == ALIKE
