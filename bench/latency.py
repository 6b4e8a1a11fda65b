"""How long a record takes from ``send`` to its delivery callback: ``python -m bench.latency [--quick] [--json FILE]``.

Records come at a fixed rate, at ticks of a millisecond, whatever the client does with them (bench/pacing.py), and
latency counts from the tick at which a record was due: coordinated omission is not left out. The delivery is timed in
the delivery callback, one a record, on every side. Sides take turns within each round, each in a process of its own;
the figures are medians over the rounds of each round's percentile, with the least and the most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.brokers import HELP, SINK, broker
from bench.data import RECORD_BYTES
from bench.latency_side import SIDES, Job
from bench.report import spread, write_json

RATES = (1_000, 100_000)
LINGERS_MS = (0, 5)
# Of the others, neither sends 100,000 records a second: --sides names them.
DEFAULT_SIDES = ("slabpress", "confluent-kafka")
PARTITIONS = 4
TOPIC = "bench"
DEADLINE_S = 300
PERCENTILES = ("p50", "p99", "p99.9", "max")


def run_side(job: Job) -> dict[str, Any]:
    """Run one side once, in its own process."""
    command = [sys.executable, "-m", "bench.latency_side", json.dumps(job._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job.side} at {job.rate} records/s failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(options: argparse.Namespace, servers: str) -> list[dict[str, Any]]:
    """Every side, rate and linger, ``rounds`` times, one after the other in turn."""
    samples: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    cases = list(itertools.product(options.rates, options.lingers, options.sides))
    for _, (rate, linger_ms, side) in itertools.product(range(options.rounds), cases):
        job = Job(side, rate, options.seconds, linger_ms, options.acks, options.codec, servers, TOPIC)
        samples.setdefault((rate, linger_ms, side), []).append(run_side(job))
    return [
        {"rate": rate, "linger_ms": linger_ms, "side": side, "cores": spread([run["cores"] for run in runs])}
        | {
            clock: {name: spread([run[clock][name] for run in runs]) for name in PERCENTILES}
            for clock in ("from_due_us", "from_call_us", "pacer_late_us")
        }
        for (rate, linger_ms, side), runs in samples.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people, in milliseconds; beside p99, the least and the most of the rounds."""
    head = (
        f"{'rec/s':>7} {'linger':>6}  {'side':16} {'p50':>8} {'p99':>8} {'(min-max)':>15} {'p99.9':>8} {'max':>8} "
        f"{'call p50':>8} {'call p99':>8} {'late p99':>8} {'cores':>6}"
    )
    texts = [head]
    for row in rows:
        due, call, late = row["from_due_us"], row["from_call_us"], row["pacer_late_us"]
        p50, p99, p999, most = (due[name]["median"] / 1000 for name in PERCENTILES)
        bounds = f"({due['p99']['min'] / 1000:.2f}-{due['p99']['max'] / 1000:.2f})"
        texts.append(
            f"{row['rate']:7} {row['linger_ms']:6}  {row['side']:16} {p50:8.2f} {p99:8.2f} {bounds:>15} {p999:8.2f} "
            f"{most:8.2f} {call['p50']['median'] / 1000:8.2f} {call['p99']['median'] / 1000:8.2f} "
            f"{late['p99']['median'] / 1000:8.2f} {row['cores']['median']:6.2f}"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two seconds of each, one round")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, after a second that is not counted")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side, rate and linger")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="records a second")
    parser.add_argument("--lingers", type=int, nargs="+", default=LINGERS_MS, help="linger in milliseconds")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=DEFAULT_SIDES)
    parser.add_argument("--acks", choices=("1", "all"), default="1", help="without idempotence in any case")
    parser.add_argument("--codec", default="none", help="compression of every side")
    parser.add_argument("--broker", default=SINK, help=HELP)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 2.0, 1
    with broker(options.broker, {TOPIC: PARTITIONS}) as servers:
        rows = measure(options, servers)
    print(f"{RECORD_BYTES}-byte JSON records, {PARTITIONS} partitions, no keys, acks {options.acks}, no idempotence,")
    print(f"codec {options.codec}, broker: {options.broker}; milliseconds, medians of {options.rounds} rounds")
    print(
        f"of {options.seconds:g} s, interleaved. p50 to max count from when a record was due, 'call' from the call of"
    )
    print("send, 'late' is how long after a record was due it was called; cores: CPU seconds a second, all processes")
    print(table(rows))
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    write_json(options.json, {"settings": settings, "partitions": PARTITIONS, "rows": rows})


if __name__ == "__main__":
    main()
