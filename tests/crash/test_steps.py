"""Whether the rig's children are those that kill themselves, and the steps at which they do are there."""

from __future__ import annotations

import importlib

import pytest

from tests.crash.processes import MORTAL
from tests.crash.steps import STEPS
from tests.shm.kit import run_python

_ROLES = """
from slabpress.config import Config
from slabpress.pipeline.preparations import roles_of
from tests.crash.job import make_children_mortal
make_children_mortal()
print(*(role.module for role in roles_of(Config.of("a:1"), 1)))
"""


def test_the_children_of_a_tormented_job_are_mortal() -> None:
    done = run_python(_ROLES)
    assert done.stdout.split() == list(MORTAL.values()), done.stderr


@pytest.mark.parametrize("step", [step for steps in STEPS.values() for step in steps])
def test_every_step_at_which_a_child_may_die_exists(step: str) -> None:
    module, _, path = step.partition(":")
    owner, _, name = path.partition(".")
    assert callable(vars(getattr(importlib.import_module(module), owner))[name])
