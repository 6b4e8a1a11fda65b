"""Percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import percentile, percentiles


def test_percentiles_of_a_thousand_values_are_the_values_at_their_ranks() -> None:
    values = [float(value) for value in range(1000, 0, -1)]
    assert percentiles(values) == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}


def test_of_one_value_every_percentile_is_that_value() -> None:
    assert set(percentiles([7.0]).values()) == {7.0}


def test_without_values_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.floats(0.001, 1.0))
def test_at_least_its_share_of_the_values_does_not_exceed_a_percentile_and_none_smaller_will_do(
    values: list[float], share: float
) -> None:
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)
