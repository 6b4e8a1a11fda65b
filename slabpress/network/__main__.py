"""Entry of the network process: ``python -P -m slabpress.network SETUP_FD``."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Final

from slabpress.shm.control import COORDINATOR

if TYPE_CHECKING:
    from slabpress.network.loop import Loop
    from slabpress.network.settings import NetworkSettings
    from slabpress.shm.handover import Child

# While a dead job's records are delivered: how often is looked at what the coordinator would be rung for.
_DRAIN_TURN_S: Final = 0.1


@contextlib.contextmanager
def without_unused_imports() -> Iterator[None]:
    """Spare this process what kio imports for others.

    It imports asyncio to name one type of it (6 MB with ssl), and registers strategies with hypothesis wherever
    that is installed (25 MB). Both can be imported again afterwards.
    """
    stand_in = ModuleType("asyncio")
    stand_in.StreamWriter = object  # type: ignore[attr-defined]
    stand_ins = {"asyncio": stand_in, "hypothesis": None}
    spared = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(spared)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in spared:
            del sys.modules[name]


def main() -> int:
    """Serve until the coordinator says stop, or is gone and what it has left is delivered.

    Returns:
        The process's exit code, 0; whatever is raised ends it with a traceback, which the coordinator keeps.
    """
    with without_unused_imports():
        from slabpress.network.loop import Loop
    from slabpress.network.settings import NetworkSettings
    from slabpress.shm.handover import Child

    child = Child.receive(sys.argv)
    settings = NetworkSettings.of(child.settings)
    loop = Loop(child, settings, time.monotonic_ns, random.random)
    loop.start()
    # What lives now lives until the end: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    child.running()
    ask = True  # whether this is the end; where the job has a pidfd only when that rings, for it is a system call
    longest_s = child.idle_timeout_s
    while not (ask and child.must_end()):
        ask = loop.turn(longest_s) or child.parent < 0
    if not child.control.stopping and settings.orphan_drain:
        drain_for(child, loop, settings)
    loop.close()
    return 0


def drain_for(child: Child, loop: Loop, settings: NetworkSettings) -> None:
    """Deliver what the job had accepted; it is gone, and its children are nobody's any more.

    Ends when nothing is under way, or nobody is left to compress what is, or it has taken too long; then says stop to
    the workers, and writes the one line of ``orphan_log``.
    """
    from slabpress.network.drain import Drain, write_log

    job = child.control.pid(COORDINATOR)
    child.become_orphan()
    loop.forget(child.parent)
    now = time.monotonic_ns()
    drain = Drain(loop.arenas.values(), child.control, settings.request_timeout_ms, now)
    drain.turn(now)
    while not drain.is_finished(now):
        loop.turn(_DRAIN_TURN_S)
        now = time.monotonic_ns()
        drain.turn(now)
    words = drain.words(job)
    child.control.stop()
    write_log(settings.orphan_log, words)  # last: a pipe that nobody reads holds up nobody else


if __name__ == "__main__":
    sys.exit(main())
