"""How many records a second, and for how much CPU: ``python -m bench.throughput [--quick] [--json FILE]``.

slabpress's ``send`` and ``send_many`` beside confluent-kafka's ``produce`` and ``produce_batch``, interleaved
in one run against the same sink: librdkafka's mock broker in a process of its own, which acknowledges at once
and keeps little, so that the producers are what is measured. All processes share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.data import RECORD_BYTES, json_lines, ratio
from bench.report import spread, write_json
from bench.side import SIDES, Job
from tests.support.mock_cluster import MockCluster

CODECS = ("none", "lz4", "zstd")
PARTITIONS = 4
DEADLINE_S = 300


def run_side(job: Job) -> dict[str, float]:
    """Run one side once, in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.side", json.dumps(job._asdict())],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{job.side} ({job.codec}) failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(records: int, rounds: int) -> list[dict[str, Any]]:
    """Every side and codec, ``rounds`` times, one after the other in turn."""
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    with MockCluster() as sink:
        sink.create_topic("bench", PARTITIONS)
        for _ in range(rounds):
            for codec in CODECS:
                for side in SIDES:
                    job = Job(side, codec, records, sink.bootstrap_servers, "bench")
                    samples.setdefault((codec, side), []).append(run_side(job))
    gigabytes = records * RECORD_BYTES / 1e9
    return [
        {
            "codec": codec,
            "side": side,
            "records_per_s": spread([records / sample["seconds"] for sample in runs]),
            "cpu_s_per_gb": spread([sample["cpu_seconds"] / gigabytes for sample in runs]),
        }
        for (codec, side), runs in samples.items()
    ]


def table(rows: list[dict[str, Any]], lines: list[bytes]) -> str:
    """The figures for people: medians, with the least and the most of the rounds."""
    texts = [f"{'codec':6} {'ratio':>5}  {'side':24} {'M rec/s':>8} {'(min-max)':>13} {'MB/s':>6} {'CPU s/GB':>9}"]
    for row in rows:
        speed = row["records_per_s"]
        bounds = f"({speed['min'] / 1e6:.2f}-{speed['max'] / 1e6:.2f})"
        texts.append(
            f"{row['codec']:6} {ratio(lines, row['codec']):5.2f}  {row['side']:24} {speed['median'] / 1e6:8.2f} "
            f"{bounds:>13} {speed['median'] * RECORD_BYTES / 1e6:6.0f} {row['cpu_s_per_gb']['median']:9.2f}"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer records, one round")
    parser.add_argument("--records", type=int, default=2_000_000, help="records of each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side and codec")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    records, rounds = (300_000, 1) if options.quick else (options.records, options.rounds)
    rows = measure(records, rounds)
    lines = json_lines(5000)
    print(f"{records} JSON records of {RECORD_BYTES} bytes, {PARTITIONS} partitions, no keys, linger 5 ms, acks all,")
    print(f"sink: librdkafka's mock broker in its own process; medians of {rounds} interleaved rounds")
    print(table(rows, lines))
    write_json(options.json, {"records": records, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
