"""``slabpress.workers``, mortal: ``python -P -m tests.crash.mortal_workers FD``."""

from __future__ import annotations

import sys

from tests.crash.steps import death_of
from tests.support.sources import take_sources

if __name__ == "__main__":
    death = death_of("worker")
    if death is not None:
        take_sources()  # the steps of what is compiled cannot be replaced

    from slabpress.workers.__main__ import main

    if death is not None:
        death.arm()
    sys.exit(main(sys.argv))
