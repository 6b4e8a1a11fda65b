"""The tree of errors: as it is drawn, and with what each carries."""

from __future__ import annotations

import pickle
import re

import pytest

from slabpress import errors
from slabpress.errors import (
    BootstrapError,
    BufferFullError,
    DeliveryError,
    DeliveryTimeoutError,
    FlushTimeoutError,
    RecordError,
    SlabpressError,
    UnknownTopicError,
)


def _all_errors() -> dict[str, type[SlabpressError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SlabpressError)
    }


def _drawn() -> dict[str, tuple[str, str | None]]:
    """Each error in the picture with its parent and the builtin beside it."""
    found: dict[str, tuple[str, str | None]] = {}
    path = {0: "SlabpressError"}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ |]*)\+-- (\w+)(?: \((\w+)\))?  +\S", line)
        if match:
            depth = len(match[1]) // 5 + 1
            path[depth] = match[2]
            found[match[2]] = path[depth - 1], match[3]
    return found


def test_the_tree_is_as_it_is_drawn() -> None:
    drawn = _drawn()
    assert drawn.keys() | {"SlabpressError"} == _all_errors().keys()
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in _all_errors()[name].__bases__]
        assert bases == ([parent, builtin] if builtin else [parent]), name


@pytest.mark.parametrize("name", sorted(_all_errors()))
def test_every_error_says_who_raises_it(name: str) -> None:
    kind = _all_errors()[name]
    assert (kind.__doc__ or "").strip().endswith((".", ")"))
    assert isinstance(kind.retriable, bool)


def test_only_what_may_pass_by_itself_is_retriable() -> None:
    retriable = {kind for kind in _all_errors().values() if kind.retriable}
    assert retriable == {UnknownTopicError, BootstrapError, BufferFullError, FlushTimeoutError}


def test_a_refused_record_says_how_many_went_before() -> None:
    assert RecordError("x").accepted == 0


@pytest.mark.parametrize("kind", [DeliveryError, DeliveryTimeoutError])
def test_a_delivery_error_carries_its_figures(kind: type[DeliveryError]) -> None:
    plain = kind("text", topic="t", partition=3, name="NAME")
    assert (str(plain), plain.topic, plain.partition, plain.name) == ("text", "t", 3, "NAME")
    assert (plain.code, plain.retriable, plain.records) == (None, False, 1)
    full = kind("text", topic="t", partition=3, name="NAME", code=7, retriable=True, records=9)
    assert (full.code, full.retriable, full.records) == (7, True, 9)


def test_a_flush_timeout_counts_records() -> None:
    error = FlushTimeoutError("text", records=5)
    assert (str(error), error.records, error.retriable) == ("text", 5, True)
    assert isinstance(error, TimeoutError)


def test_errors_survive_pickling_with_all_they_carry() -> None:
    error = DeliveryError("words", topic="t", partition=3, name="N", code=7, retriable=True, records=5)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), copy.args, copy.__dict__) == (DeliveryError, error.args, error.__dict__)
    assert pickle.loads(pickle.dumps(FlushTimeoutError("late", records=4))).records == 4  # noqa: S301 - our own bytes
