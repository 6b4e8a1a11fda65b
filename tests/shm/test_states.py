"""The state tables: complete, named, and the same as the picture at the head of their module."""

from __future__ import annotations

import re

import pytest

from slabpress.shm import states
from slabpress.shm.states import (
    BATCH_STATES,
    BATCH_TRANSITIONS,
    OUTPUT_STATES,
    OUTPUT_TRANSITIONS,
    SLAB_STATES,
    SLAB_TRANSITIONS,
    STATE_MASK,
    check_transition,
    owned,
)

_TABLES = {
    "batch": ("", BATCH_STATES, BATCH_TRANSITIONS),
    "slab": ("SLAB_", SLAB_STATES, SLAB_TRANSITIONS),
    "output": ("OUTPUT_", OUTPUT_STATES, OUTPUT_TRANSITIONS),
}


@pytest.mark.parametrize(("prefix", "names", "table"), _TABLES.values(), ids=_TABLES)
def test_every_state_has_its_number_name_and_transitions(
    prefix: str, names: tuple[str, ...], table: dict[int, frozenset[int]]
) -> None:
    for number, name in enumerate(names):
        assert getattr(states, prefix + name.upper()) == number
    assert table.keys() == set(range(len(names)))
    assert all(following < len(names) for leaves_to in table.values() for following in leaves_to)
    assert all(table.values()), "a state that nothing leaves"
    assert set().union(*table.values()) == table.keys(), "a state that nothing enters"


@pytest.mark.parametrize(("prefix", "names", "table"), _TABLES.values(), ids=_TABLES)
def test_exactly_the_listed_transitions_are_allowed(
    prefix: str, names: tuple[str, ...], table: dict[int, frozenset[int]]
) -> None:
    for old in range(len(names)):
        for new in range(len(names)):
            if new in table[old]:
                check_transition(table, names, old, new)
            else:
                with pytest.raises(ValueError, match=f"no transition from {names[old]} to {names[new]}"):
                    check_transition(table, names, old, new)


def _drawn(cell: str) -> set[str]:
    return set(re.findall(r"[A-Z_]{4,}", cell))


def test_the_picture_of_the_batch_says_what_the_table_says() -> None:
    text, _, _ = (states.__doc__ or "").partition("\n    slab")
    picture = re.findall(r"^    ([A-Z_]+) +[A-Z] +((?:[A-Z_]+(?:, )?)+)  ", text, re.MULTILINE)
    drawn = {state: _drawn(leaves) for state, leaves in picture}
    assert drawn == {
        BATCH_STATES[old].upper(): {BATCH_STATES[new].upper() for new in leaves_to}
        for old, leaves_to in BATCH_TRANSITIONS.items()
    }


def test_an_owned_word_keeps_state_and_worker_apart() -> None:
    words = {owned(state, worker) for state in (1, 3) for worker in range(64)}
    assert len(words) == 128
    assert {word & STATE_MASK for word in words} == {1, 3}
    assert owned(3, 0) == 3


def test_no_worker_has_the_number_of_an_orphan() -> None:
    from slabpress.shm.layout import WORKERS_MAX

    assert WORKERS_MAX <= states.ORPHAN
