"""matplotlib, which only pictures need: it is no requirement of slabpress or of its tests."""

from __future__ import annotations

import importlib
from typing import Any


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files, and the same file from the same figures.

    Raises:
        SystemExit: it is not installed. Ask before measuring, which takes longer than to install it.
    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemExit("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "slabpress"
    return importlib.import_module("matplotlib.pyplot")
