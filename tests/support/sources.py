"""slabpress's modules as their sources, or as what mypyc made of them.

In the tests' own process they are sources, unless ``COMPILED`` is set: tests look inside, put their own in a method's
place, and a change shows at once. The processes that tests start run what is installed, which is compiled.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Final

# Set it to have the tests' own process run what is compiled; tests that are marked ``inside`` are left out.
COMPILED: Final = "COMPILED"
_PACKAGE: Final = "slabpress."


class _Sources(MetaPathFinder):
    """Finds a module's source where Python would take its extension module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PACKAGE) or path is None:
            return None
        loader = (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES)
        specs = (importlib.machinery.FileFinder(folder, loader).find_spec(fullname, target) for folder in path)
        return next((spec for spec in specs if spec is not None), None)


def is_compiled() -> bool:
    """Whether this process runs what mypyc made."""
    return bool(os.environ.get(COMPILED))


def take_sources() -> None:
    """Have this process import sources from now on."""
    sys.meta_path.insert(0, _Sources())
