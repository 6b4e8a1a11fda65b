"""A worker process: ``python -P -m slabpress.workers SETUP_FD``."""

from __future__ import annotations

import sys

from slabpress.shm.handover import Child
from slabpress.workers.worker import Worker, run


def main(argv: list[str]) -> int:
    """Compress until the coordinator says stop or is gone."""
    child = Child.receive(argv)
    worker = Worker(child)
    worker.follow_changes()
    child.running()
    run(child, worker)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
