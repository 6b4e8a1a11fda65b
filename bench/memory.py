"""What a memory setting is worth when acknowledgements are slow: ``python -m bench.memory [--quick]``.

The experiment of KAFKA-6512. Twenty producers with a thread and 1 MiB of buffer memory each send 1 KiB messages as
fast as they can through a proxy to a real broker. Data goes up freely; acknowledgements are free for some seconds,
then come at a trickle, then not at all, then freely again, upon which all that was accepted has to arrive. Each side
runs in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from bench import memory_java
from bench.data import ratio
from bench.memory_clients import CLIENTS
from bench.memory_figures import LEGEND, MIB, draw, summarize, table
from bench.memory_messages import SHAPE, Job, make_messages
from bench.memory_run import TRICKLE_BYTES_PER_S, Phases, measure, write_messages
from bench.report import write_json
from tests.support.kafka import KafkaCluster

SIDES = (*CLIENTS, *memory_java.RELEASES)
CODECS = ("none", "lz4", "gzip", "snappy", "zstd")
ONLY_OURS = ("snappy", "zstd")
PICTURED = "lz4"
PARTITIONS = 4
ANSWER_TIMEOUT_S = 20


def stored_records(servers: str, topic: str) -> int:
    """How many records the topic holds."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-memory", "log_level": 2})
    try:
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        marks = [consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT_S) for place in places]
    finally:
        consumer.close()
    return sum([int(mark[1]) for mark in marks])


def measure_all(options: argparse.Namespace, phases: Phases, messages: list[bytes]) -> list[dict[str, Any]]:
    """Every side and codec, one after the other; a broken run is a row like any other."""
    runs: list[dict[str, Any]] = []
    pairs = [
        (side, codec)
        for codec in options.codecs
        for side in options.sides
        if side == "slabpress" or codec not in ONLY_OURS or options.every_codec
    ]
    with tempfile.TemporaryDirectory(prefix="slabpress-memory-") as folder, KafkaCluster(1, proxied=True) as cluster:
        file = write_messages(folder, messages)
        for number, (side, codec) in enumerate(pairs):
            topic = f"memory-{number}"
            cluster.create_topic(topic, PARTITIONS)
            buffer_bytes = options.buffer_kib * 1024
            servers = cluster.proxied_bootstrap_servers
            job = Job(side, codec, options.producers, buffer_bytes, PARTITIONS, servers, topic, file)
            run = measure(job, cluster.proxies[1], phases)
            stored = stored_records(cluster.bootstrap_servers, topic)
            runs.append(summarize(run, options.producers * buffer_bytes, stored))
            cluster.delete_topic(topic)
            print(table(runs[-1:]).splitlines()[-1], flush=True)
    return runs


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a shorter stall; slabpress and confluent; none and lz4")
    parser.add_argument("--seconds", type=float, help="how long acknowledgements trickle (15; quick: 4)")
    parser.add_argument("--stopped", type=float, help="how long they are stopped after that (5; quick: 2)")
    parser.add_argument("--sides", type=_names(SIDES), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--codecs", type=_names(CODECS), help=f"of {', '.join(CODECS)}")
    parser.add_argument("--every-codec", action="store_true", help="snappy and zstd for other sides than slabpress too")
    parser.add_argument("--producers", type=int, default=20, help="producers of each side")
    parser.add_argument("--buffer-kib", type=int, default=1024, help="memory setting of each producer")
    parser.add_argument("--json", type=Path, help="write the figures and all samples to this file")
    parser.add_argument("--picture", type=Path, help=f"draw memory over time ({PICTURED}) to this file")
    return parser.parse_args()


def _names(allowed: tuple[str, ...]) -> Any:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return split


def main() -> None:
    """Measure, print, and write JSON and the picture if asked to."""
    options = parse()
    options.sides = options.sides or (["slabpress", "confluent-kafka"] if options.quick else list(SIDES))
    options.codecs = options.codecs or (["none", "lz4"] if options.quick else list(CODECS))
    missing = memory_java.missing_tool()
    if missing is not None:
        options.sides = [side for side in options.sides if side not in memory_java.RELEASES]
        print(f"no Java side: {missing}")
    usual = (2.0, 4.0, 2.0) if options.quick else (3.0, 15.0, 5.0)
    trickle_s = usual[1] if options.seconds is None else options.seconds
    phases = Phases(usual[0], trickle_s, usual[2] if options.stopped is None else options.stopped)
    messages = make_messages()
    began = time.monotonic()
    print(
        f"{options.producers} producers x {options.buffer_kib} KiB = "
        f"{options.producers * options.buffer_kib * 1024 / MIB:.1f} MiB configured; {PARTITIONS} partitions"
    )
    print(f"messages: {SHAPE}; lz4 makes them {ratio(messages, 'lz4'):.1f} times smaller")
    print(
        f"acknowledgements: {phases.free_s:g} s free, {phases.trickle_s:g} s at {TRICKLE_BYTES_PER_S:g} bytes/s over "
        f"all connections, {phases.stopped_s:g} s stopped, then free"
    )
    runs = measure_all(options, phases, messages)
    print(f"\n{table(runs)}\n\n{LEGEND}\n\nsettings:")
    for side in options.sides:
        run = next(run for run in runs if run["side"] == side)
        planned = f"; its own plan: {run['planned_bytes'] / MIB:.1f} MiB in all" if run["planned_bytes"] else ""
        print(f"  {side}: {run['settings']}{planned}")
    print(f"  JVM: {' '.join(memory_java.JVM)}")
    print(f"{time.monotonic() - began:.0f} s in all")
    head = {"phases": phases._asdict(), "jvm": memory_java.JVM, "messages": SHAPE, "partitions": PARTITIONS}
    write_json(options.json, head | {"runs": runs})
    if options.picture is not None:
        draw(runs, PICTURED if PICTURED in options.codecs else options.codecs[0], options.producers, options.picture)


if __name__ == "__main__":
    main()
