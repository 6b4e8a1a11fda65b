"""Entry of the network process: ``python -P -m slabpress.network SETUP_FD``."""

from __future__ import annotations

import gc
import random
import sys
import time


def main() -> int:
    """Serve until the coordinator says stop or is gone."""
    # kio registers strategies with hypothesis wherever that can be imported, which costs 25 MB here.
    sys.modules.setdefault("hypothesis", None)  # type: ignore[arg-type]
    from slabpress.network.loop import Loop
    from slabpress.network.settings import NetworkSettings
    from slabpress.shm.handover import Child

    child = Child.receive(sys.argv)
    settings = NetworkSettings.of(child.settings)
    loop = Loop(
        child.control, child.slot, child.arenas, settings, child.watched, time.monotonic_ns, random.random
    )
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
