"""``python -m slabpress``: the same as the ``slabpress`` command."""

from __future__ import annotations

import sys

from slabpress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
