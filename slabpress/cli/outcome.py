"""How a command ends: its exit codes, and the one line that says what went wrong."""

from __future__ import annotations

import sys
from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class CommandError(Exception):
    """A subcommand cannot go on; the text is the one line that the user sees."""


def error_line(text: str) -> str:
    """An error as the one line that is shown."""
    return f"slabpress: {' '.join(text.split())}"


def complain(text: str) -> None:
    """Write one line to standard error."""
    print(error_line(text), file=sys.stderr, flush=True)
