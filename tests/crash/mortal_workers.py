"""``slabpress.workers``, mortal: ``python -P -m tests.crash.mortal_workers FD``."""

from __future__ import annotations

import sys

from tests.crash.steps import arm

if __name__ == "__main__":
    from slabpress.workers.__main__ import main

    arm("worker")
    sys.exit(main(sys.argv))
