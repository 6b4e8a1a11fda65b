"""How near the pipeline comes to its codec alone: ``python -m bench.scaling [--quick] [--json FILE]``.

First the whole pipeline, fed by one thread as fast as it takes records. Then, in the same round, the codec alone: as
many processes as there were workers compress the same batches with the same calls. Beside them runs a load: for each
other process of the pipeline (the job, the network process, the broker) one that uses as much CPU as that did, in
slices of a millisecond, because it has to run somewhere. One process for them all would not come to it: beside codecs
that never rest it gets its fair share of the cores and no more; what the load got is in the table. Once more without
that load, which no pipeline on the same cores can reach. And CPU for CPU: what a gigabyte costs a codec process, over
what it costs a worker; that does not depend on who else runs.

Then how throughput grows with the arena and with the number of topic-partitions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.brokers import SINK, broker
from bench.report import spread, write_json
from bench.scaling_alone import Load
from bench.scaling_side import Job

CODECS = ("gzip", "lz4", "zstd:3", "zstd:9")
BATCHES = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
ARENAS = (8 << 20, 16 << 20, 64 << 20, 256 << 20)
PARTITIONS = (1, 12, 200, 1000)
USUAL_CODEC, USUAL_ARENA, USUAL_PARTITIONS = "zstd:3", 64 << 20, 4
DEADLINE_S = 120


class Case(NamedTuple):
    """One line of the table; 0 is slabpress's default."""

    codec: str
    workers: int
    batch_bytes: int = 0
    arena_bytes: int = USUAL_ARENA
    partitions: int = USUAL_PARTITIONS


def efficiency_cases(codecs: list[str], cores: int) -> list[Case]:
    """Every codec with 1 to all workers, and every batch size with all."""
    every = [Case(codec, workers) for codec in codecs for workers in range(1, cores + 1)]
    return every + [Case(USUAL_CODEC, cores, batch_bytes=size) for size in BATCHES]


def growth_cases(cores: int) -> list[Case]:
    """Arenas, and topic-partitions, with all workers."""
    arenas = [Case(USUAL_CODEC, cores, arena_bytes=size) for size in ARENAS]
    return arenas + [Case(USUAL_CODEC, cores, partitions=count) for count in PARTITIONS]


def efficiency(run: dict[str, float], loaded: list[dict[str, float]], free: list[dict[str, float]]) -> dict[str, float]:
    """What the pipeline reached of its codec: beside the load, without it, and CPU for CPU."""
    with_load, without = (sum(one["bytes_per_s"] for one in runs) for runs in (loaded, free))
    codec_cpu = sum(one["cpu_s_per_gb"] for one in loaded) / len(loaded)
    return {
        "of_codec": run["bytes_per_s"] / with_load,
        "of_codec_free": run["bytes_per_s"] / without,
        "of_codec_cpu": codec_cpu / run["worker_cpu_s_per_gb"],
        "codec_bytes_per_s": with_load,
        "codec_cores": with_load * codec_cpu / 1e9,
    }


def _topic(partitions: int) -> str:
    return f"bench-{partitions}"


def _run_side(job: Job) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.scaling_side", json.dumps(job._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextlib.contextmanager
def _part(role: str, fields: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.scaling_alone", role, json.dumps(fields)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run_alone(job: Job, duties: list[float]) -> tuple[list[dict[str, float]], float]:
    """The codec alone, in as many processes as the job has workers, beside a load: what each did, and the load got."""
    with contextlib.ExitStack() as steps:
        codecs = [steps.enter_context(_part("codec", job._asdict())) for _ in range(job.workers)]
        shares = [Load(duty, job.seconds)._asdict() for duty in duties]
        parts = codecs + [steps.enter_context(_part("load", share)) for share in shares]
        for part in parts:
            if part.stdout is None or part.stdout.readline() != "ready\n":
                raise SystemExit(f"a part of {job} ended with exit code {part.wait()} before it was ready")
        for part in parts:
            assert part.stdin is not None  # noqa: S101 - it was asked for
            part.stdin.write("go\n")
            part.stdin.flush()
        ends = [json.loads(part.communicate(timeout=DEADLINE_S)[0].splitlines()[-1]) for part in parts]
        return ends[: job.workers], sum(load["cores"] for load in ends[job.workers :])


def measure(cases: list[Case], options: argparse.Namespace, *, beside_codec: bool) -> list[dict[str, Any]]:
    """Every case, ``rounds`` times in turn."""
    samples: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    topics = {_topic(case.partitions): case.partitions for case in cases}
    with broker(SINK, topics) as servers:
        pids = [process.pid for process in psutil.Process().children(recursive=True)]
        for _ in range(options.rounds):
            for case in cases:
                job = Job(*case, options.seconds, servers, _topic(case.partitions), pids, options.idempotence)
                figures = _run_side(job)
                duties = figures.pop("other_duties")
                if beside_codec:
                    alone = job._replace(batch_bytes=int(figures["batch_bytes"]))  # as the pipeline's workers got them
                    loaded, load_cores = run_alone(alone, duties)
                    free, _ = run_alone(alone, [])
                    figures |= efficiency(figures, loaded, free) | {"load_cores": load_cores}
                samples[case].append(figures)
    return [
        case._asdict() | {name: spread([run[name] for run in runs]) for name in runs[0]}
        for case, runs in samples.items()
    ]


def efficiency_table(rows: list[dict[str, Any]]) -> str:
    """The figures for people: medians, beside the efficiency the least and the most of the rounds."""
    head = (
        f"{'codec':7} {'workers':>7} {'batch':>6} {'MB/s':>6} {'codec':>6} {'ratio':>6} {'(min-max)':>11} "
        f"{'unloaded':>8} {'by CPU':>6} {'(min-max)':>11} {'others':>6} {'load':>6}"
    )
    texts = [head]
    for row in rows:
        ratio, by_cpu = row["of_codec"], row["of_codec_cpu"]
        texts.append(
            f"{row['codec']:7} {row['workers']:7} {row['sealed_bytes']['median'] / 1024:5.0f}K "
            f"{row['bytes_per_s']['median'] / 1e6:6.0f} {row['codec_bytes_per_s']['median'] / 1e6:6.0f} "
            f"{ratio['median']:6.2f} {_bounds(ratio):>11} {row['of_codec_free']['median']:8.2f} "
            f"{by_cpu['median']:6.2f} {_bounds(by_cpu):>11} {row['other_cores']['median']:6.2f} "
            f"{row['load_cores']['median']:6.2f}"
        )
    return "\n".join(texts)


def _bounds(figures: dict[str, float]) -> str:
    return f"({figures['min']:.2f}-{figures['max']:.2f})"


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Throughput by arena and by partitions."""
    texts = [f"{'arena':>8} {'partitions':>10} {'MB/s':>6} {'(min-max)':>11} {'batch':>7}"]
    for row in rows:
        speed = row["bytes_per_s"]
        bounds = f"({speed['min'] / 1e6:.0f}-{speed['max'] / 1e6:.0f})"
        texts.append(
            f"{row['arena_bytes'] >> 20:5} MiB {row['partitions']:10} {speed['median'] / 1e6:6.0f} {bounds:>11} "
            f"{row['sealed_bytes']['median'] / 1024:6.1f}K"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one second of each, one round, two codecs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run, after a start that is not counted")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each case")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), help="compression, as in zstd:3")
    parser.add_argument("--parts", nargs="+", choices=("codec", "growth"), default=["codec", "growth"])
    # Without it one batch of a topic-partition is on the wire at a time, and small batches wait for their responses.
    parser.add_argument("--idempotence", action=argparse.BooleanOptionalAction, default=True, help="the default is on")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.codecs = 1.0, 1, ["lz4", "zstd:3"]
    cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = {}
    print(f"records of 200 bytes by send_many(), {cores} cores; medians of {options.rounds} interleaved rounds")
    print(f"settings: the defaults, idempotence {'on' if options.idempotence else 'off'}")
    if "codec" in options.parts:
        result["codec"] = measure(efficiency_cases(options.codecs, cores), options, beside_codec=True)
        print("ratio: uncompressed MB/s over those of the codec alone beside a load like the rest of the pipeline's")
        print("('others', in cores, and what that 'load' got); unloaded: without that load;")
        print("by CPU: codec's CPU a byte over the workers'")
        print(efficiency_table(result["codec"]))
    if "growth" in options.parts:
        result["growth"] = measure(growth_cases(cores), options, beside_codec=False)
        print(f"{USUAL_CODEC}, {cores} workers")
        print(growth_table(result["growth"]))
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    write_json(options.json, {"settings": settings} | result)


if __name__ == "__main__":
    main()
