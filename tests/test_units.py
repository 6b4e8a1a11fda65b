"""Sizes in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("123", 123),
        (" 7 ", 7),
        ("5b", 5),
        ("32m", 32 << 20),
        ("32M", 32 << 20),
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        ("64MB", 64_000_000),
        ("1.5 GB", 1_500_000_000),
        ("1.5GiB", 3 << 29),
        ("2k", 2048),
        ("2KiB", 2048),
        ("2kb", 2000),
        ("1t", 1 << 40),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
        ("0.5KiB", 512),
    ],
)
def test_a_size_in_words_is_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", " ", "MiB", "-1", "1e3", "12 parsecs", "1 2", "1,5GB", "0x10", ".5k", "1.k", "inf"]
)
def test_what_is_no_size_is_refused_with_an_example_of_one(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a size: write a number of bytes, or one with KiB, MiB or GiB"


def test_a_number_beyond_all_bounds_is_no_size_either() -> None:
    with pytest.raises(ValueError):
        parse_bytes("9" * 400)


@given(st.integers(0, 1 << 52))
def test_a_number_is_its_own_size(count: int) -> None:
    assert parse_bytes(count) == parse_bytes(str(count)) == count


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        ((64 << 20) + (1 << 19), "64.5 MiB"),
        (1 << 30, "1 GiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_sizes_for_people(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


@given(st.integers(0, 1 << 50))
def test_a_size_for_people_reads_back_as_about_the_same(count: int) -> None:
    assert abs(parse_bytes(format_bytes(count)) - count) <= count * 0.051
