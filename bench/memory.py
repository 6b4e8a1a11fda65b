"""What a memory setting is worth when acknowledgements are slow: ``python -m bench.memory [--quick]``.

The experiment of KAFKA-6512. Twenty producers with a thread and 1 MiB of buffer memory each send 1 KiB messages as
fast as they can through a proxy to a real broker. Data goes up freely; acknowledgements are free for some seconds,
then come at a trickle, then not at all, then freely again, upon which all that was accepted has to arrive. Each side
runs in a process of its own, one after the other. All sides and codecs take about 15 minutes, ``--quick`` one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import memory_java
from bench.data import ratio
from bench.drawing import pyplot
from bench.java_build import missing_tool
from bench.memory_clients import CLIENTS, WHY
from bench.memory_figures import LEGEND, MIB, PROMISES_LEGEND, broken, promises, summarize, table
from bench.memory_messages import SHAPE, Job, make_messages
from bench.memory_picture import draw
from bench.memory_readback import stored_records, verify
from bench.memory_run import TRICKLE_BYTES_PER_S, Phases, Sample, measure
from bench.report import write_json
from tests.support.kafka import KafkaCluster

SIDES = (*CLIENTS, *memory_java.RELEASES)
CODECS = ("none", "lz4", "gzip", "snappy", "zstd")
ONLY_OURS = ("snappy", "zstd")
PICTURED = "lz4"
PARTITIONS = 4
FULL = Phases(3.0, 10.0, 15.0)
QUICK = Phases(2.0, 4.0, 3.0)
PATIENCE_S = 60.0


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
        file = Path(folder) / "messages"
        file.write_bytes(b"".join(messages))
        for number, (side, codec) in enumerate(pairs):
            job = Job(
                side=side,
                codec=codec,
                producers=options.producers,
                buffer_bytes=options.buffer_kib * 1024,
                cap_bytes=options.cap_mib * MIB,
                patience_ms=int(1000 * (phases.trickle_s + phases.stopped_s + PATIENCE_S)),
                partitions=PARTITIONS,
                bootstrap_servers=cluster.proxied_bootstrap_servers,
                topic=f"memory-{number}",
                messages=str(file),
            )
            runs.append(measure_one(job, cluster, phases, messages))
    return runs


def measure_one(job: Job, cluster: KafkaCluster, phases: Phases, messages: list[bytes]) -> dict[str, Any]:
    """One side with one codec, and what the topic holds afterwards."""
    cluster.create_topic(job.topic, job.partitions)
    run = measure(job, cluster.proxies[1], phases)
    stored = stored_records(cluster.bootstrap_servers, job.topic, job.partitions)
    run = summarize(run, job.producers * job.buffer_bytes, stored)
    run["verdict"] = None
    if job.side == "slabpress" and run["accepted_each"]:
        run["verdict"] = verify(cluster.bootstrap_servers, job.topic, run["accepted_each"], messages)._asdict()
    cluster.delete_topic(job.topic)
    died = f", died: {run['died']}" if run["died"] else ""
    print(f"  {job.side} {job.codec}: peak {run['peak_bytes'] / MIB:.1f} MiB, {run['seconds']} s{died}", flush=True)
    for text in broken([run]):
        print(f"BROKEN: {text}", file=sys.stderr, flush=True)
    return run


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a short stall; slabpress and confluent; none and lz4")
    times = "seconds of %s acknowledgements ({}; quick: {})"
    for name, what in (("free", "unhindered"), ("trickle", "slow"), ("stopped", "no")):
        usual = [f"{getattr(phases, name + '_s'):g}" for phases in (FULL, QUICK)]
        parser.add_argument(f"--{name}", type=float, metavar="S", help=times.format(*usual) % what)
    parser.add_argument("--sides", type=_names(SIDES), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--codecs", type=_names(CODECS), help=f"of {', '.join(CODECS)}")
    parser.add_argument("--every-codec", action="store_true", help="snappy and zstd for other sides than slabpress too")
    parser.add_argument("--producers", type=int, default=20, help="producers of each side")
    parser.add_argument("--buffer-kib", type=int, default=1024, help="memory setting of each producer")
    parser.add_argument("--cap-mib", type=int, default=2048, help="kill a side that takes more")
    parser.add_argument("--json", type=Path, help="write the figures and all samples to this file")
    parser.add_argument("--picture", type=Path, help=f"draw memory over time ({PICTURED}) to this file")
    options = parser.parse_args()
    options.sides = options.sides or (["slabpress", "confluent-kafka"] if options.quick else list(SIDES))
    options.codecs = options.codecs or (["none", "lz4"] if options.quick else list(CODECS))
    return options


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return split


def phases_of(options: argparse.Namespace) -> Phases:
    """The phases that were asked for."""
    usual = QUICK if options.quick else FULL
    asked = (options.free, options.trickle, options.stopped)
    return Phases(*(seconds if given is None else given for given, seconds in zip(asked, usual, strict=True)))


def introduce(options: argparse.Namespace, phases: Phases, messages: list[bytes]) -> None:
    """Say what is about to be measured."""
    configured = options.producers * options.buffer_kib / 1024
    print(f"{options.producers} producers x {options.buffer_kib} KiB = {configured:.1f} MiB configured")
    print(f"a side that takes more than {options.cap_mib} MiB is killed; topics have {PARTITIONS} partitions")
    print(f"messages: {SHAPE}; lz4 makes them {ratio(messages, 'lz4'):.1f} times smaller")
    print(
        f"acknowledgements: {phases.free_s:g} s free, {phases.trickle_s:g} s at {TRICKLE_BYTES_PER_S:g} bytes/s over "
        f"all connections, {phases.stopped_s:g} s stopped, then free until all is delivered",
        flush=True,
    )


def conclude(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Print the tables and the settings."""
    print(f"\n{table(runs)}\n\n{LEGEND}")
    if any(run["side"] == "slabpress" for run in runs):
        print(f"\nslabpress:\n\n{promises(runs)}\n\n{PROMISES_LEGEND}")
    print("\nsettings; what is not named is the client's default:")
    for side in options.sides:
        run = next((run for run in runs if run["side"] == side), None)
        if run is not None:
            given = ", ".join(f"{name}={value}" for name, value in run["settings"].items() if "serializer" not in name)
            print(f"- {side}: {given}. {WHY.get(side, memory_java.WHY)}.")
    print(f"- JVM: {' '.join(memory_java.jvm(options.cap_mib * MIB))}")


def main() -> int:
    """Measure, print, and write JSON and the picture if asked to; 1 if slabpress broke a promise."""
    options = parse()
    if options.picture is not None:
        pyplot()
    phases, messages = phases_of(options), make_messages()
    missing = missing_tool()
    if missing is not None:
        options.sides = [side for side in options.sides if side not in memory_java.RELEASES]
        print(f"no Java side: {missing}")
    began = time.monotonic()
    introduce(options, phases, messages)
    runs = measure_all(options, phases, messages)
    conclude(options, runs)
    seconds = round(time.monotonic() - began)
    print(f"\n{seconds} s in all")
    head = {"phases": phases._asdict(), "seconds": seconds, "jvm": memory_java.jvm(options.cap_mib * MIB)}
    head |= {
        "messages": SHAPE,
        "partitions": PARTITIONS,
        "cap_bytes": options.cap_mib * MIB,
        "why": WHY | dict.fromkeys(memory_java.RELEASES, memory_java.WHY),
    }
    write_json(options.json, head | {"sample_fields": Sample._fields, "runs": runs})
    if options.picture is not None:
        draw(runs, PICTURED if PICTURED in options.codecs else options.codecs[0], options.producers, options.picture)
    wrong = broken(runs)
    for text in wrong:
        print(f"BROKEN: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
