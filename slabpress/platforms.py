"""Where slabpress can run. Imported before anything that needs POSIX, so that the answer is one clear error."""

from __future__ import annotations

import sys

from slabpress.errors import UnsupportedPlatformError


def check_platform(platform: str = sys.platform) -> None:
    """Raise UnsupportedPlatformError where the arena cannot be made."""
    if platform.startswith("linux") or platform == "darwin":
        return
    raise UnsupportedPlatformError(
        f"slabpress needs anonymous shared memory, record locks and descriptor passing, which {platform} "
        "lacks: run it on Linux (or macOS); on Windows, under WSL 2"
    )
