"""The table of settings, made from the Config struct: ``slabpress settings``.

README.md holds the same table between two marks; ``python -m slabpress.cli.settings --write README.md`` renews
it and ``--check README.md`` (part of ``make check``) fails when it is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from slabpress.config import Config
from slabpress.units import format_bytes

BEGIN: Final = "<!-- settings: begin (made by `make format`) -->"
END: Final = "<!-- settings: end -->"
_SIZES: Final = ("buffer_memory", "max_request_size")


def settings_table() -> str:
    """The settings as a Markdown table: name, default, meaning."""
    struct = inspect.type_info(Config)
    assert isinstance(struct, inspect.StructType)  # noqa: S101 - it is one
    rows = [f"| `{field.name}` | {_default(field)} | {_description(field.type)} |" for field in struct.fields]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])


def _default(field: inspect.Field) -> str:
    value: Any = field.default
    if value is msgspec.NODEFAULT:
        return "(required)"
    if field.name in _SIZES:
        return format_bytes(value)
    special = {"acks": {-1: "all"}, "workers": {0: "auto"}}
    return str(special.get(field.name, {}).get(value, value))


def _description(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        own = (kind.extra_json_schema or {}).get("description")
        return str(own) if own else _description(kind.type)
    return ""


def renewed(text: str) -> str:
    """``text`` with the table between the marks made anew.

    Raises:
        ValueError: the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{settings_table()}\n{END}{tail}"


def run(_: argparse.Namespace) -> int:
    """Print the table and return 0."""
    print(settings_table())
    return 0


def main(argv: list[str]) -> int:
    """Print the table, or check or renew the one in a file."""
    parser = argparse.ArgumentParser(description="the table of settings in README.md")
    parser.add_argument("--check", type=Path, help="fail if this file's table is stale")
    parser.add_argument("--write", type=Path, help="renew this file's table")
    options = parser.parse_args(argv)
    file: Path | None = options.check or options.write
    if file is None:
        print(settings_table())
        return 0
    text = file.read_text()
    fresh = renewed(text)
    if options.write:
        file.write_text(fresh)
    elif text != fresh:
        print(f"{file}: the table of settings is stale: run `make format`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
