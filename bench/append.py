"""What one record costs in the thread that sends it: ``python -m bench.append [--quick] [--json FILE]``.

Every way in, into an arena that has room for all of a run, without workers, network process or broker: nothing waits,
and nothing else runs. A run is one producer of its own; the ways take turns, so that a noisy minute is shared by all.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench.data import RECORD_BYTES, json_lines
from bench.report import spread, write_json
from slabpress.config import Config
from slabpress.errors import FlushTimeoutError
from slabpress.pipeline.coordinator import Coordinator
from slabpress.plan import process_lines
from slabpress.producer import Producer
from slabpress.shm.topics import TopicTable

DISTINCT = 20_000
PARTITIONS = 4
TOPIC = "bench"
HEADERS = [("trace", b"0123456789abcdef"), ("source", b"bench")]


class Data(NamedTuple):
    """The same records in every shape; made before any clock runs."""

    values: list[bytes]
    keys: list[bytes]
    lines: bytes
    table: Any


class ChildlessProducer(Producer):
    """A producer whose records stay in the arena."""

    @staticmethod
    def _processes(config: Config) -> Coordinator:
        return Coordinator([], config.workers, process_lines(config, config.workers))


def make_data(records: int) -> Data:
    """Records of 200 bytes, and keys of 8."""
    distinct = json_lines(DISTINCT)
    values = [distinct[place % DISTINCT] for place in range(records)]
    keys = [b"%08d" % (place * 7919 % 100_003) for place in range(records)]
    table = pa.table({"key": pa.array(keys, pa.binary()), "value": pa.array(values, pa.binary())})
    return Data(values, keys, b"\n".join(values) + b"\n", table)


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


def run_once(way: Callable[[Producer, Data], None], data: Data) -> float:
    """Nanoseconds a record of one way."""
    records = len(data.values)
    room = 4 * records * (RECORD_BYTES + 100)  # half of an arena is slabs
    producer = ChildlessProducer("nowhere:9092", buffer_memory=max(room, 64 << 20), workers=1, linger_ms=60_000)
    try:
        know_topic(producer)
        start = time.perf_counter_ns()
        way(producer, data)
        took = time.perf_counter_ns() - start
    finally:
        with contextlib.suppress(FlushTimeoutError):  # nobody was to deliver them
            producer.close(0)
    return took / records


def know_topic(producer: ChildlessProducer) -> None:
    """Have the topic known as if a broker had told of it."""
    session = producer._session
    table = TopicTable(session.arena)
    with session.lock:
        session._topics.want(TOPIC)
        table.set_answer(table.wanted()[TOPIC], PARTITIONS, 0)
        session._topics.refresh()


def measure(records: int, rounds: int) -> list[dict[str, Any]]:
    """Every way, ``rounds`` times, one after the other in turn."""
    data = make_data(records)
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            samples[name].append(run_once(way, data))
    return [{"way": name, "ns_per_record": spread(runs)} for name, runs in samples.items()]


def table_of(rows: list[dict[str, Any]]) -> str:
    """The figures for people: medians, with the least and the most of the rounds."""
    texts = [f"{'way':20} {'ns/record':>9} {'(min-max)':>15} {'M rec/s':>8} {'GB/s':>6}"]
    for row in rows:
        cost = row["ns_per_record"]
        bounds = f"({cost['min']:.0f}-{cost['max']:.0f})"
        median = cost["median"]
        texts.append(f"{row['way']:20} {median:9.0f} {bounds:>15} {1e3 / median:8.2f} {RECORD_BYTES / median:6.2f}")
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer records, three rounds")
    parser.add_argument("--records", type=int, default=300_000, help="records of each run")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each way")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    records, rounds = (50_000, 3) if options.quick else (options.records, options.rounds)
    rows = measure(records, rounds)
    print(
        f"{records} JSON records of {RECORD_BYTES} bytes a run, keys of 8, {PARTITIONS} partitions, in the thread that"
    )
    print(f"sends; an arena with room for all, no other process; medians of {rounds} interleaved rounds")
    print(table_of(rows))
    write_json(options.json, {"records": records, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
