"""How much a producer slows the job that uses it: ``python -m bench.interference [--quick] [--json FILE]``.

The job computes in pure Python and produces 50 MB/s: every 4 ms it does a fixed amount of work (JSON and dicts) and
hands over 1,000 records of 200 bytes. The slowdown is what work and handing over take together, beyond what the same
work takes in the turns in which the same process hands over nothing: every 0.1 s, for a machine that others use is not
the same for longer. Sleeping until the next period does not count. It is taken apart into the calls themselves, what
the work costs more of CPU (caches, memory), and what it waits longer (for the interpreter's lock, or for the CPU).
What "no producer" shows is the noise. zstd is the default codec: the one that leaves a producer most to do elsewhere.

With ``--pin`` the job's thread has a CPU of its own, and all else (other threads of its process, children, broker)
the rest; without, the kernel puts everything where it likes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.brokers import HELP, SINK, broker
from bench.data import RECORD_BYTES
from bench.interference_side import BLOCK, SIDES, TURN, Job, seconds_an_item, split_cpus
from bench.pacing import NS_PER_S
from bench.report import spread, write_json

CODECS = ("zstd", "none", "lz4")
PARTITIONS = 4
TOPIC = "bench"
DEADLINE_S = 300


def run_side(job: Job) -> dict[str, dict[str, float]]:
    """Run one side once, in its own process."""
    command = [sys.executable, "-m", "bench.interference_side", json.dumps(job._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job.side} ({job.codec}) failed:\n{done.stderr[-2000:]}")
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(run: dict[str, float], alone: dict[str, float]) -> dict[str, float]:
    """The turns with the producer beside those without: the slowdown and its parts, as shares of the time these worked.

    slowdown = calls + more CPU for the same work + more waiting

    Of CPU alone, which others on the machine disturb less: what the job's thread used more, calls included, and what
    all threads of its process did.
    """
    base = alone["work_s"] + alone["send_s"]
    waited, waited_alone = (figures["work_s"] - figures["work_cpu_s"] for figures in (run, alone))
    return {
        "slowdown": (run["work_s"] + run["send_s"]) / base - 1,
        "calls": (run["send_s"] - alone["send_s"]) / base,
        "work_cpu": (run["work_cpu_s"] - alone["work_cpu_s"]) / base,
        "work_waits": (waited - waited_alone) / base,
        "thread_cpu": (run["work_cpu_s"] + run["send_cpu_s"] - alone["work_cpu_s"] - alone["send_cpu_s"]) / base,
        "process_cpu": (run["process_cpu_s"] - alone["process_cpu_s"]) / base,
        "process_cores": run["process_cpu_s"] / run["wall_s"],
        "children_cores": run["children_cpu_s"] / run["wall_s"],
        "preempted_per_s": run["preempted"] / run["wall_s"],
    }


def measure(options: argparse.Namespace, items: int, servers: str) -> list[dict[str, Any]]:
    """Every side and codec, ``rounds`` times in turn, each beside the same process when it sends nothing."""
    period_ns = round(BLOCK * RECORD_BYTES / (options.megabytes * 1e6) * NS_PER_S)
    turns = max(1, round(options.seconds * NS_PER_S / period_ns / TURN / 2))
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _, codec, side in itertools.product(range(options.rounds), options.codecs, SIDES):
        took = run_side(Job(side, codec, items, turns, period_ns, options.pin, servers, TOPIC))
        megabytes = turns * TURN * BLOCK * RECORD_BYTES / took["producing"]["wall_s"] / 1e6
        compared = compare(took["producing"], took["alone"])
        samples.setdefault((codec, side), []).append(compared | {"megabytes_per_s": megabytes})
    return [
        {"codec": codec, "side": side} | {name: spread([run[name] for run in runs]) for name in runs[0]}
        for (codec, side), runs in samples.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people: medians, beside the slowdown the least and the most of the rounds."""
    head = (
        f"{'codec':7} {'side':23} {'slower':>7} {'(min-max)':>14} {'calls':>6} {'CPU':>6} {'waits':>6} "
        f"{'thread CPU':>10} {'process CPU':>11} "
        f"{'MB/s':>6} {'job cores':>9} {'children':>8} {'preempted/s':>11}"
    )
    texts = [head]
    for row in rows:
        slow = row["slowdown"]
        bounds = f"({100 * slow['min']:.1f}-{100 * slow['max']:.1f})"
        calls, work_cpu, waits = (100 * row[name]["median"] for name in ("calls", "work_cpu", "work_waits"))
        thread_cpu, process_cpu = (100 * row[name]["median"] for name in ("thread_cpu", "process_cpu"))
        texts.append(
            f"{row['codec']:7} {row['side']:23} {100 * slow['median']:6.1f}% {bounds:>14} {calls:5.1f}% "
            f"{work_cpu:5.1f}% {waits:5.1f}% {thread_cpu:9.1f}% {process_cpu:10.1f}% "
            f"{row['megabytes_per_s']['median']:6.1f} "
            f"{row['process_cores']['median']:9.2f} {row['children_cores']['median']:8.2f} "
            f"{row['preempted_per_s']['median']:11.0f}"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two seconds of each, one round, zstd")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side and codec")
    parser.add_argument("--megabytes", type=float, default=50.0, help="MB/s that the job produces")
    parser.add_argument("--share", type=float, default=0.75, help="of the time that the work alone takes")
    parser.add_argument("--codecs", nargs="+", default=CODECS, help="compression, as in zstd or zstd:3")
    parser.add_argument("--pin", action="store_true", help="the job's thread has a CPU of its own")
    parser.add_argument("--broker", default=SINK, help=HELP)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.codecs = 2.0, 1, CODECS[:1]
    items = round(options.share * BLOCK * RECORD_BYTES / (options.megabytes * 1e6) / seconds_an_item())
    if options.pin:  # what is started from here on stays off the first CPU
        os.sched_setaffinity(0, split_cpus(os.sched_getaffinity(0))[1])
    with broker(options.broker, {TOPIC: PARTITIONS}) as servers:
        rows = measure(options, items, servers)
    print(f"a job that computes {100 * options.share:.0f} % of the time ({items} items a block) and produces")
    print(f"{options.megabytes:g} MB/s in records of {RECORD_BYTES} bytes, {BLOCK} a block, {PARTITIONS} partitions,")
    print(
        f"linger 5 ms, acks all, no idempotence; broker: {options.broker}; {'pinned' if options.pin else 'not pinned'};"
    )
    print(f"medians of {options.rounds} interleaved rounds, each beside the same process in turns without sending")
    print(table(rows))
    settings = {name: value for name, value in vars(options).items() if name != "json"} | {"items": items}
    write_json(options.json, {"settings": settings, "partitions": PARTITIONS, "rows": rows})


if __name__ == "__main__":
    main()
