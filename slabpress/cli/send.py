"""``slabpress send``: the lines of files or of standard input as records."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slabpress.cli.lines import Block, read_blocks, split_keys, strip_returns
from slabpress.cli.options import settings_of
from slabpress.cli.outcome import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, CommandError, complain, error_line
from slabpress.cli.progress import Count, ProgressLine
from slabpress.config import Config
from slabpress.errors import (
    BufferFullError,
    ConfigError,
    DeliveryError,
    FlushTimeoutError,
    RecordError,
    RecordTooLargeError,
    RecordTypeError,
    RecordValueError,
    SlabpressError,
    TopicNameError,
)
from slabpress.pipeline.topics import check_topic_name
from slabpress.producer import Producer

if TYPE_CHECKING:
    import argparse

STANDARD_INPUT: Final = "-"
# Every failed line is counted, but only this many are named: a million wrong lines need no million messages.
NAMED_MAX: Final = 20

Keys = list[bytes | None]


class LineSender:
    """Sends lines, and counts what became of them.

    Args:
        producer: where they go.
        arguments: the command line.

    Attributes:
        accepted: records the producer took, and their bytes.
        refused: lines that could not be records.
        undelivered: accepted records that were not delivered.
        unread: files that could not be read to their end.
    """

    def __init__(self, producer: Producer, arguments: argparse.Namespace) -> None:
        self._producer = producer
        self._topic: str = arguments.topic
        self._separator: bytes | None = arguments.key_separator
        self._null_keys: bool = arguments.missing_key == "null"
        self._partition: int | None = arguments.partition
        self._crlf: bool = arguments.crlf
        # Separator and carriage return are no part of the record.
        self._longest = producer.plan.largest_record_bytes + len(self._separator or b"") + self._crlf
        self.accepted = Count(0, 0)
        self.refused = 0
        self.undelivered = 0
        self.unread = 0
        self.progress = ProgressLine(sys.stderr, lambda: self.accepted)

    def send_file(self, path: str) -> None:
        """Send every line of a file, or of standard input."""
        name = "stdin" if path == STANDARD_INPUT else path

        def refuse(number: int, reason: str) -> None:
            self.refuse(f"{name}:{number}", reason)

        try:
            with _open(path) as stream:
                for block in read_blocks(stream, self._longest, refuse):
                    self._send_block(name, block)
        except OSError as error:
            self.unread += 1
            self.progress.say(error_line(f"{name}: {error.strerror or error}; the rest of it was not sent"))

    def refuse(self, place: str, reason: str) -> None:
        """Count a line that cannot be a record, and name the first ones."""
        self.refused += 1
        if self.refused <= NAMED_MAX:
            self.progress.say(error_line(f"{place}: {reason}"))
        if self.refused == NAMED_MAX:
            self.progress.say(error_line(f"{NAMED_MAX} lines were refused; further ones are counted, not named"))

    def _send_block(self, name: str, block: Block) -> None:
        lines = strip_returns(block.lines) if self._crlf else block.lines
        numbers: Sequence[int] = range(block.first, block.first + len(lines))
        if self._separator is None:
            self._send(name, numbers, None, lines)
            return
        keys, values, missing = split_keys(lines, self._separator)
        if missing and not self._null_keys:
            for place in missing:
                self.refuse(f"{name}:{numbers[place]}", f"no key separator {self._separator!r} in the line")
            left_out = set(missing)
            kept = [place for place in range(len(lines)) if place not in left_out]
            numbers = [numbers[place] for place in kept]
            keys = [keys[place] for place in kept]
            values = [values[place] for place in kept]
        self._send(name, numbers, keys, values)

    def _send(self, name: str, numbers: Sequence[int], keys: Keys | None, values: list[bytes]) -> None:
        place = 0
        while place < len(values):
            taken, refusal = self._send_some(values[place:], keys and keys[place:])
            end = place + taken
            self._count(keys and keys[place:end], values[place:end])
            place = end
            if refusal is not None:
                self.refuse(f"{name}:{numbers[place]}", str(refusal))
                place += 1

    def _send_some(self, values: list[bytes], keys: Keys | None) -> tuple[int, RecordError | None]:
        """Send until all are accepted or one is refused; how many were, and why the next one was not."""
        try:
            self._producer.send_many(self._topic, values, keys=keys, partition=self._partition)
        except BufferFullError as error:
            return error.accepted, None  # the cluster is slower than the input: the caller goes on waiting
        except (RecordTooLargeError, RecordTypeError, RecordValueError) as error:
            return error.accepted, error
        return len(values), None

    def _count(self, keys: Keys | None, values: list[bytes]) -> None:
        octets = sum(map(len, values)) + sum(len(key) for key in keys or () if key is not None)
        self.accepted = Count(self.accepted.records + len(values), self.accepted.octets + octets)

    def flush(self) -> None:
        """Wait until everything is resolved, and count what was not delivered."""
        try:
            self._producer.flush()
        except DeliveryError as error:
            self.undelivered += error.records
            self.progress.say(error_line(str(error)))


def run(arguments: argparse.Namespace) -> int:
    """Send, and return the exit code."""
    settings = settings_of(arguments)
    _check(arguments, settings)
    files = arguments.files or [STANDARD_INPUT]
    _check_files(files)
    with Producer(arguments.bootstrap_server, **settings) as producer:
        sender = LineSender(producer, arguments)
        try:
            with sender.progress:
                for path in files:
                    sender.send_file(path)
                sender.flush()
        except KeyboardInterrupt:
            _close_interrupted(producer)
            return EXIT_INTERRUPTED
    failed = sender.refused + sender.undelivered
    if failed:
        complain(f"{failed} of {sender.refused + sender.accepted.records} records failed")
    return EXIT_FAILED if failed or sender.unread else EXIT_DONE


def _check(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Raise ConfigError for what can be seen to be wrong before anything is started."""
    Config.of(arguments.bootstrap_server, **settings)
    try:
        check_topic_name(arguments.topic)
    except TopicNameError as error:
        raise ConfigError(str(error)) from error
    if arguments.missing_key == "null" and arguments.key_separator is None:
        raise ConfigError("--missing-key null is about lines without a separator: give --key-separator as well")
    if arguments.partition is not None and arguments.partition < 0:
        raise ConfigError(f"--partition is {arguments.partition}: partitions are numbered from 0")


def _check_files(paths: list[str]) -> None:
    """Raise CommandError if a file is not there to be read: better nothing is sent than half of it by mistake."""
    for path in paths:
        if path == STANDARD_INPUT:
            continue
        try:
            is_directory = stat.S_ISDIR(Path(path).stat().st_mode)
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}; nothing was sent") from error
        if is_directory:
            raise CommandError(f"{path}: is a directory; nothing was sent")
        if not os.access(path, os.R_OK):
            raise CommandError(f"{path}: permission denied; nothing was sent")


def _open(path: str) -> io.FileIO:
    if path == STANDARD_INPUT:
        return io.FileIO(0, closefd=False)
    return io.FileIO(path)


def _close_interrupted(producer: Producer) -> None:
    """Close politely after Ctrl-C: send what was accepted, for exit_flush_ms or until the next Ctrl-C."""
    with contextlib.suppress(SlabpressError, KeyboardInterrupt):
        producer.flush(producer.config.exit_flush_ms / 1000)
    lost = 0
    try:
        producer.close(0)
    except FlushTimeoutError as error:
        lost = error.records
    except SlabpressError as error:
        complain(str(error))
    delivered = producer.stats().records_delivered
    complain(f"interrupted: {delivered} records were delivered, {lost} accepted ones were not acknowledged")
