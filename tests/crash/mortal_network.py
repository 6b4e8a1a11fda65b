"""``slabpress.network``, mortal: ``python -P -m tests.crash.mortal_network FD``."""

from __future__ import annotations

import sys

from tests.crash.steps import arm

if __name__ == "__main__":
    from slabpress.network.__main__ import main, without_unused_imports

    with without_unused_imports():
        import slabpress.network.loop  # noqa: F401 - the steps are in modules that it loads
    arm("network process")
    sys.exit(main())
