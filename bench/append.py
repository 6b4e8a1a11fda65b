"""What one record costs the thread that sends it: ``python -m bench.append [--quick] [--json FILE]``.

Every way in, without workers, network process or broker: nothing waits, and nothing else runs. The ways take turns, so
that a noisy minute is shared by all. Each is measured twice:

- warm: in an arena of the default size, a chunk of records again and again; with the clock stopped, what was sealed is
  thrown away and its slabs are free again, as with consumers that keep up. Records and slabs of a chunk are 1 MB each:
  they stay in a second-level cache of 2 MiB or more.
- cold: distinct records, once, into an arena with room for all of them, that was populated but never written to: the
  records are read from memory that is in no cache of a core, and written to such.

Beside them two floors: a loop that calls an empty function of Python, and a memcpy of the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench.childless import ChildlessProducer
from bench.data import RECORD_BYTES, json_lines
from bench.report import spread, write_json
from slabpress.errors import FlushTimeoutError
from slabpress.producer import Producer

DISTINCT = 20_000
PARTITIONS = 4
TOPIC = "bench"
CHUNK = 5_000
CHUNKS = 20
HEADERS = [("trace", b"0123456789abcdef"), ("source", b"bench")]


class Data(NamedTuple):
    """The same records in every shape; made before any clock runs."""

    values: list[bytes]
    keys: list[bytes]
    lines: bytes
    table: Any


def make_data(records: int) -> Data:
    """Records of 200 bytes, and keys of 8."""
    distinct = json_lines(DISTINCT)
    values = [bytes(bytearray(distinct[place % DISTINCT])) for place in range(records)]  # each an object of its own
    keys = [b"%08d" % (place * 7919 % 100_003) for place in range(records)]
    table = pa.table({"key": pa.array(keys, pa.binary()), "value": pa.array(values, pa.binary())})
    return Data(values, keys, b"\n".join(values) + b"\n", table)


def call_nothing(_: Producer, data: Data) -> None:
    """A loop that calls what does nothing."""

    def send(_topic: str, _value: bytes) -> None: ...

    for value in data.values:
        send(TOPIC, value)


def send_dropped(producer: Producer, data: Data) -> None:
    """One call a record, the handle not kept."""
    send = producer.send
    for value in data.values:
        send(TOPIC, value)


def send_kept(producer: Producer, data: Data) -> None:
    """One call a record, every handle kept."""
    send = producer.send
    handles = []
    for value in data.values:
        handles.append(send(TOPIC, value))  # noqa: PERF401 - as programs do it
    del handles


def send_keyed(producer: Producer, data: Data) -> None:
    """One call a record, with a key."""
    send = producer.send
    for key, value in zip(data.keys, data.values, strict=True):
        send(TOPIC, value, key=key)


def send_headed(producer: Producer, data: Data) -> None:
    """One call a record, with two headers."""
    send = producer.send
    for value in data.values:
        send(TOPIC, value, headers=HEADERS)


def send_called(producer: Producer, data: Data) -> None:
    """One call a record, with a callback."""
    send = producer.send
    for value in data.values:
        send(TOPIC, value, on_delivery=id)


def send_many(producer: Producer, data: Data) -> None:
    """One call for all."""
    producer.send_many(TOPIC, data.values)


def send_many_keyed(producer: Producer, data: Data) -> None:
    """One call for all, with keys."""
    producer.send_many(TOPIC, data.values, keys=data.keys)


def send_lines(producer: Producer, data: Data) -> None:
    """One buffer of lines."""
    producer.send_lines(TOPIC, data.lines)


def send_arrow(producer: Producer, data: Data) -> None:
    """One table."""
    producer.send_arrow(TOPIC, data.table, value="value")


def send_arrow_keyed(producer: Producer, data: Data) -> None:
    """One table, with a column of keys."""
    producer.send_arrow(TOPIC, data.table, value="value", key="key")


WAYS: dict[str, Callable[[Producer, Data], None]] = {
    "empty function": call_nothing,
    "send": send_dropped,
    "send, handle kept": send_kept,
    "send, key": send_keyed,
    "send, 2 headers": send_headed,
    "send, callback": send_called,
    "send_many": send_many,
    "send_many, keys": send_many_keyed,
    "send_lines": send_lines,
    "send_arrow": send_arrow,
    "send_arrow, key": send_arrow_keyed,
}


def run_warm(way: Callable[[Producer, Data], None], data: Data, settings: dict[str, Any]) -> float:
    """Nanoseconds a record of one way, over a chunk that is sent many times."""
    took = 0
    with _producer(**settings) as producer:
        for repetition in range(CHUNKS + 1):
            start = time.perf_counter_ns()
            way(producer, data)
            took += time.perf_counter_ns() - start if repetition else 0  # the first one warms up
            producer.drain()
    return took / CHUNKS / len(data.values)


def run_cold(way: Callable[[Producer, Data], None], data: Data, settings: dict[str, Any]) -> float:
    """Nanoseconds a record of one way, into an arena with room for all."""
    room = 4 * len(data.values) * (RECORD_BYTES + 100)  # half of an arena is slabs
    with _producer(buffer_memory=max(room, 64 << 20), **settings) as producer:
        start = time.perf_counter_ns()
        way(producer, data)
        took = time.perf_counter_ns() - start
    return took / len(data.values)


@contextlib.contextmanager
def _producer(**settings: Any) -> Iterator[ChildlessProducer]:
    producer = ChildlessProducer("nowhere:9092", workers=1, linger_ms=60_000, **settings)
    try:
        producer.know_topic(TOPIC, PARTITIONS)
        yield producer
    finally:
        with contextlib.suppress(FlushTimeoutError):  # nobody was to deliver them
            producer.close(0)


def copy_bytes(data: Data, repetitions: int) -> float:
    """Nanoseconds a record of a memcpy of the lines, into memory that is there already."""
    size = len(data.lines)
    with mmap.mmap(-1, size) as target:
        for page in range(0, size, mmap.PAGESIZE):
            target[page] = 1
        start = time.perf_counter_ns()
        for _ in range(repetitions):
            target[:] = data.lines
        return (time.perf_counter_ns() - start) / repetitions / len(data.values)


def measure(records: int, rounds: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every way, ``rounds`` times, one after the other in turn."""
    chunk, all_of_them = make_data(CHUNK), make_data(records)
    warm: dict[str, list[float]] = {name: [] for name in (*WAYS, "memcpy")}
    cold: dict[str, list[float]] = {name: [] for name in (*WAYS, "memcpy")}
    for _ in range(rounds):
        for name, way in WAYS.items():
            warm[name].append(run_warm(way, chunk, settings))
            cold[name].append(run_cold(way, all_of_them, settings))
        copy_bytes(chunk, 1)
        warm["memcpy"].append(copy_bytes(chunk, CHUNKS))
        cold["memcpy"].append(copy_bytes(all_of_them, 1))
    return [{"way": name, "warm_ns": spread(runs), "cold_ns": spread(cold[name])} for name, runs in warm.items()]


def table_of(rows: list[dict[str, Any]]) -> str:
    """The figures for people: medians, with the least and the most of the rounds."""
    texts = [f"{'way':20} {'warm ns':>8} {'(min-max)':>13} {'M rec/s':>8} {'GB/s':>6} {'cold ns':>8} {'(min-max)':>13}"]
    for row in rows:
        warm, cold = row["warm_ns"], row["cold_ns"]
        median = warm["median"]
        texts.append(
            f"{row['way']:20} {median:8.0f} {_bounds(warm):>13} {1e3 / median:8.2f} {RECORD_BYTES / median:6.2f} "
            f"{cold['median']:8.0f} {_bounds(cold):>13}"
        )
    return "\n".join(texts)


def _bounds(cost: dict[str, float]) -> str:
    return f"({cost['min']:.0f}-{cost['max']:.0f})"


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer records, three rounds")
    parser.add_argument("--records", type=int, default=100_000, help="records of each cold run")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each way")
    parser.add_argument("--batch-size", type=int, help="bytes of a batch, if not the default")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    records, rounds = (30_000, 3) if options.quick else (options.records, options.rounds)
    settings = {"batch_size": options.batch_size} if options.batch_size else {}
    rows = measure(records, rounds, settings)
    print(
        f"JSON records of {RECORD_BYTES} bytes, keys of 8, {PARTITIONS} partitions, in the thread that sends, no other"
    )
    print(f"process; nanoseconds a record, medians of {rounds} interleaved rounds.")
    print(
        f"warm: {CHUNK} records {CHUNKS} times, slabs reused: all in the second-level cache, if it has 2 MiB or more."
    )
    print(f"cold: {records} distinct records once, an arena with room for all: in no cache of a core. GB/s is of warm.")
    print(f"settings: {settings or 'the defaults'}")
    print(table_of(rows))
    write_json(options.json, {"records": records, "rounds": rounds, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
