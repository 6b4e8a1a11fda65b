"""A worker process: ``python -P -m slabpress.workers SETUP_FD``.

Takes turns among the arenas, one batch each, so that a flooded producer does not starve the others; sleeps on
its doorbell when none has a batch for it.
"""

from __future__ import annotations

import sys

from slabpress.shm.control import FIRST_WORKER
from slabpress.shm.handover import Child
from slabpress.workers.compressor import Compressor


def main(argv: list[str]) -> int:
    """Compress until the coordinator says stop or is gone."""
    child = Child.receive(argv)
    worker = child.slot - FIRST_WORKER
    compressors = [Compressor(arena, settings, worker, child.control) for arena, settings in child.arenas]
    child.running()
    while not child.control.stopping:
        worked = [compressor.work() for compressor in compressors]  # every arena's turn before any's second
        if not any(worked) and not sleep(child, compressors):
            break
    return 0


def sleep(child: Child, compressors: list[Compressor]) -> bool:
    """Wait for the doorbell; False when the coordinator is gone."""
    control, slot = child.control, child.slot
    control.lie_down(slot)
    try:
        if not any(compressor.admission.has_work() for compressor in compressors) and not control.stopping:
            control.bells[slot].wait(child.idle_timeout_s, child.watched)
    finally:
        control.get_up(slot)
    return not child.parent_is_gone()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
