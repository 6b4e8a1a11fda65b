"""The ``slabpress`` command: which subcommand runs, and what its errors look like.

    exit 0    everything was done
    exit 1    a record failed, a file could not be read, or what the command needs is missing
    exit 2    the command line or a setting is wrong; nothing was started
    exit 130  Ctrl-C

An error is one line on standard error that starts with ``slabpress:``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from slabpress.cli.options import parse
from slabpress.cli.outcome import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError, complain
from slabpress.errors import ConfigError, SlabpressError

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; argparse itself exits on ``--help`` and wrong usage."""
    arguments = parse(argv)
    try:
        return _run(arguments)
    except ConfigError as error:
        complain(str(error))
        return EXIT_USAGE
    except (SlabpressError, CommandError) as error:
        complain(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; this keeps the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _run(arguments: argparse.Namespace) -> int:
    # A subcommand's module is loaded when it runs: `slabpress plan` needs neither brokers nor clients.
    run: Callable[[argparse.Namespace], int] = importlib.import_module(f"slabpress.cli.{arguments.command}").run
    code = run(arguments)
    sys.stdout.flush()
    return code
