"""Entry of the network process: ``python -P -m slabpress.network SETUP_FD``."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import time
from collections.abc import Iterator
from types import ModuleType


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
    """Serve until the coordinator says stop or is gone."""
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
    while not child.must_end():
        loop.turn(child.idle_timeout_s)
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
