"""``slabpress demo``: 336,776 flights through a producer, read back by another client, on one screen.

prepare    all records in memory, so that the time is the producer's and not the CSV reader's
send       send_many() in blocks, then flush(); time, wire bytes and the memory's peak
read back  with confluent-kafka: count and checksums must be equal, or the exit code is 1
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slabpress.cli.cluster import check_installed, create_topic, read_back
from slabpress.cli.compare import Checksum
from slabpress.cli.data import Records, find_flights, load
from slabpress.cli.embedded import EmbeddedBroker
from slabpress.cli.figures import PeakMemory
from slabpress.cli.options import settings_of
from slabpress.cli.outcome import EXIT_DONE, EXIT_FAILED, complain
from slabpress.observe.memory import process_bytes
from slabpress.units import format_bytes

if TYPE_CHECKING:
    import argparse

    from slabpress.plan import MemoryPlan

_BLOCK_RECORDS: Final = 5_000


class Sent(NamedTuple):
    """What the sending took."""

    seconds: float
    wire_bytes: int
    peak_bytes: int
    samples: int
    plan: MemoryPlan
    codec: str


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and return 0 if every record came back as it was sent."""
    check_installed()
    import_bytes, settings = _settings(arguments)
    path = Path(arguments.data) if arguments.data else find_flights()
    partitions = arguments.partitions
    topic = f"slabpress-demo-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        stack.callback(_note, "")
        servers, place = arguments.bootstrap_server, f"{arguments.bootstrap_server}, which keeps it"
        others: frozenset[int] = frozenset()
        if servers is None:
            broker = stack.enter_context(EmbeddedBroker())
            servers, place = broker.bootstrap_server, "the embedded broker noida-db"
            others = frozenset({broker.pid})
        _note(f"reading {path.name} ...")
        records = load(path, arguments.key_column, arguments.records)
        expected = _checksum(records)
        create_topic(servers, topic, partitions, embedded=bool(others))
        _note("sending ...")
        baseline = process_bytes(os.getpid()) - import_bytes
        sent = _send(servers, settings, topic, records, PeakMemory(baseline, others))
        _note("reading back ...")
        found = read_back(servers, topic, partitions)
    print(f"topic {topic}, {partitions} partitions, at {place}\n")
    _show(path.name, records, sent)
    return judge(expected, found)


def _settings(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """The settings, checked, and what the library's modules that this needed took of this process's memory."""
    before = process_bytes(os.getpid())
    settings = settings_of(arguments)
    from slabpress.config import Config
    from slabpress.plan import plan_memory

    plan_memory(Config.of(arguments.bootstrap_server or "localhost:9092", **settings))
    return process_bytes(os.getpid()) - before, settings


def _checksum(records: Records) -> Checksum:
    checksum = Checksum()
    for key, value in zip(records.keys, records.values, strict=True):
        checksum.add(key, value)
    return checksum


def _send(servers: str, settings: dict[str, Any], topic: str, records: Records, memory: PeakMemory) -> Sent:
    from slabpress.producer import Producer

    keys, values = records
    with memory, Producer(servers, **settings) as producer:
        started = time.perf_counter()
        for place in range(0, len(values), _BLOCK_RECORDS):
            end = place + _BLOCK_RECORDS
            producer.send_many(topic, values[place:end], keys=keys[place:end])
        producer.flush()
        seconds = time.perf_counter() - started
    level = "" if producer.config.compression_level is None else f":{producer.config.compression_level}"
    return Sent(
        seconds,
        producer.stats().request_bytes,
        producer.plan.arena_bytes + memory.peak,
        memory.samples,
        producer.plan,
        f"{producer.config.compression_type}{level}",
    )


def _show(source: str, records: Records, sent: Sent) -> None:
    from slabpress.footprints import WORKER, bytes_by_part

    count, octets, seconds, wire = len(records.values), records.octets, sent.seconds, max(1, sent.wire_bytes)
    rows = (
        ("prepared", f"{count:,} lines of {source}, all in memory before the first was sent"),
        ("sent", f"in {seconds:.2f} s, from the first send to the end of flush: {count / seconds:,.0f} rec/s"),
        ("in", f"{octets / 1e6:.1f} MB of keys and values: {octets / seconds / 1e6:.1f} MB/s"),
        (
            "on the wire",
            f"{wire / 1e6:.1f} MB of requests: {wire / seconds / 1e6:.1f} MB/s ({octets / wire:.2f} : 1, {sent.codec})",
        ),
    )
    for name, text in rows:
        print(f"{name:12} {text}")
    share = 100 * sent.peak_bytes / sent.plan.total_bytes
    print("\nmemory planned before the first record (`slabpress plan` shows every line)")
    for part, amount in bytes_by_part(sent.plan.lines).items():
        name = f"{sent.plan.workers} workers" if part == WORKER else part
        print(f"  {name:16} {format_bytes(amount):>10}")
    print(f"  {'total':16} {format_bytes(sent.plan.total_bytes):>10}")
    peak = f"{format_bytes(sent.peak_bytes)}, {share:.0f} % of the plan"
    print(f"measured peak: {peak} (arena, and PSS of all its processes in {sent.samples} samples)\n")


def judge(expected: Checksum, found: Checksum) -> int:
    """Say whether what was read is what was sent; the exit code."""
    differences = expected.differences(found)
    for text in differences:
        complain(f"not equal: {text}")
    if differences:
        return EXIT_FAILED
    print(
        f"EQUAL        {found.records:,} records read back with confluent-kafka: {found.keys:,} keys compared, "
        f"values in order; {found.keyless:,} records without a key"
    )
    return EXIT_DONE


def _note(text: str) -> None:
    """Say on a terminal what is going on; the next note takes its place."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
