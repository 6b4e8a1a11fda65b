"""Delays between tries."""

from __future__ import annotations

from slabpress.network.backoff import NS_PER_MS, Backoff


def test_doubles_up_to_the_largest() -> None:
    backoff = Backoff(100, 1000, lambda: 0.5)
    assert [backoff.delay_ns(n) // NS_PER_MS for n in (1, 2, 3, 4, 5, 6, 1000)] == [
        100, 200, 400, 800, 1000, 1000, 1000,
    ]  # fmt: skip


def test_jitter_is_a_fifth_either_way() -> None:
    assert Backoff(100, 1000, lambda: 0.0).delay_ns(1) == 80 * NS_PER_MS
    assert Backoff(100, 1000, lambda: 1.0).delay_ns(1) == 120 * NS_PER_MS


def test_a_largest_below_the_first_does_not_shorten_it() -> None:
    assert Backoff(100, 10, lambda: 0.5).delay_ns(3) == 100 * NS_PER_MS
