"""``slabpress.workers``, mortal: ``python -P -m tests.crash.mortal_workers FD``."""

from __future__ import annotations

import sys

from tests.crash.steps import death_of

if __name__ == "__main__":
    from slabpress.workers.__main__ import main

    death = death_of("worker")
    if death is not None:
        death.arm()
    sys.exit(main(sys.argv))
