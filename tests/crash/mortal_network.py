"""``slabpress.network``, mortal: ``python -P -m tests.crash.mortal_network FD``."""

from __future__ import annotations

import sys

from tests.crash.steps import death_of
from tests.support.sources import take_sources

if __name__ == "__main__":
    death = death_of("network process")
    if death is not None:
        take_sources()  # the steps of what is compiled cannot be replaced

    from slabpress.network.__main__ import main, without_unused_imports

    with without_unused_imports():
        import slabpress.network.loop  # noqa: F401 - the steps are in modules that it loads
    if death is not None:
        death.arm()
    sys.exit(main())
