"""Children that kill themselves with -9 at a named step, in place of slabpress's own: no fault point is in the product.

A child draws, when it is born, whether it will die by itself, at which step, and at which time that it comes there. The
steps are the methods between which a batch changes its owner or its state; before and after each.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

# Where a child writes how it dies: a line a death.
FILE: Final = "SLABPRESS_CRASH_DEATHS"
STEPS: Final[dict[str, tuple[str, ...]]] = {
    "network process": (
        "slabpress.network.sequences:Sequences.assign",
        "slabpress.network.sequences:Sequences.begin_anew",
        "slabpress.network.sequences:Sequences.set_producer_id",
        "slabpress.network.batches:ArenaBatches.take_over",
        "slabpress.network.batches:ArenaBatches.make_bytes",
        "slabpress.network.batches:ArenaBatches.start",
        "slabpress.network.batches:ArenaBatches.put_back",
        "slabpress.network.batches:ArenaBatches.finish_delivered",
        "slabpress.network.batches:ArenaBatches._finish",
        "slabpress.network.batches:ArenaBatches.split",
        "slabpress.network.batches:ArenaBatches._drop_source",
        "slabpress.network.produce:Producing.send",
        "slabpress.network.produce:Producing.answered",
        "slabpress.network.broker:Broker.flush",
        "slabpress.network.connection:Connection.sent",
        "slabpress.network.connection:Connection.received",
    ),
    "worker": (
        "slabpress.shm.admission:Admission.take",
        "slabpress.shm.admission:Admission._claim",
        "slabpress.shm.admission:Admission._adopt_orphan",
        "slabpress.shm.admission:Admission._park",
        "slabpress.shm.descriptors:Descriptors.set_admitted",
        "slabpress.shm.descriptors:Descriptors.set_worker",
        "slabpress.workers.calls:Calls.begin",
        "slabpress.workers.calls:Calls.published",
        "slabpress.workers.compressor:Compressor._compress",
        "slabpress.workers.compressor:Compressor._cut_piece",
        "slabpress.workers.compressor:Compressor._publish",
    ),
}
_MORTAL: Final = 0.6
_LAST_TIME: Final = 3000


class Death:
    """One child's death to come.

    Args:
        role: which steps it may die at.
        rng: decides.
    """

    def __init__(self, role: str, rng: random.Random) -> None:
        self.step = rng.choice(STEPS[role])
        self.after = rng.random() < 0.5
        # Most steps come thousands of times, some a few: every magnitude is as likely.
        self._left = round(_LAST_TIME ** rng.random())
        self._role = role
        self._parent = os.getppid()

    def arm(self) -> None:
        """Have the step count down."""
        module, _, path = self.step.partition(":")
        owner, _, name = path.partition(".")
        cls = getattr(importlib.import_module(module), owner)
        setattr(cls, name, self._fatal(getattr(cls, name)))

    def _fatal(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def fatal(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if not self.after and self._left <= 0:
                self._die()
            result = method(*args, **kwargs)
            if self.after and self._left <= 0:
                self._die()
            return result

        return fatal

    def _die(self) -> None:
        if os.getppid() != self._parent:
            return  # an orphan is not replaced: what it would deliver is lost, as DESIGN.md says
        when = "after" if self.after else "before"
        with Path(os.environ[FILE]).open("a") as file:
            file.write(f"{self._role} {when} {self.step.partition(':')[2]}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def death_of(role: str) -> Death | None:
    """Decide whether and how this child dies."""
    rng = random.Random()
    return Death(role, rng) if rng.random() < _MORTAL else None
