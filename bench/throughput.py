"""How many records a second, and for how much CPU: ``python -m bench.throughput [--quick] [--json FILE]``.

slabpress beside other producers, interleaved in one run: the same records, from one file, to the same broker, each
side in a process of its own; all share the machine's cores. The broker is bench/sink.py, which acknowledges at once and
keeps only counts, so that the producers are what is measured, or a real Kafka. A side that did not deliver every record
is an error and not a figure. bench/points.py says what the suites are; bench/side_*.py which settings each side has,
and whence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import points
from bench.drawing import pyplot
from bench.java_build import missing_tool
from bench.kinds import KINDS
from bench.peers import HEADLINE, PEERS
from bench.points import Point
from bench.report import machine, write_json
from bench.throughput_figures import LEGEND, summarize, tables
from bench.throughput_head import head
from bench.throughput_picture import CHARTS, draw
from bench.throughput_run import Comparison, LostError, Plan

QUICK_MEGABYTES = 40.0
MEGABYTES = 300.0
ROUNDS = 5


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return split


def _codecs(text: str) -> list[str]:
    for name in text.split(","):
        codec, _, level = name.partition(":")
        if codec not in ("none", "gzip", "snappy", "lz4", "zstd") or (level and not level.isdigit()):
            raise argparse.ArgumentTypeError(f"{name!r} is no codec such as {', '.join(points.CODECS)}")
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="less data, one round: does it work?")
    parser.add_argument("--suite", choices=("headline", "full"), default="headline", help="full: along every axis")
    parser.add_argument("--rounds", type=int, help=f"runs of each side at each point ({ROUNDS})")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--records", type=int, help="of each run, whatever their size")
    amount.add_argument("--megabytes", type=float, help=f"of each run ({MEGABYTES:g})")
    parser.add_argument("--codecs", type=_codecs, help=f"such as {','.join(points.CODECS)}")
    parser.add_argument("--data", type=_names(tuple(KINDS)), help=f"of {','.join(KINDS)}")
    parser.add_argument("--partitions", type=_numbers, help="numbers of topic-partitions, such as 1,12,200")
    parser.add_argument("--broker", type=_names(points.BROKERS), help=f"of {','.join(points.BROKERS)}")
    parser.add_argument("--keyed", action="store_true", help="send the records' keys too")
    parser.add_argument("--sides", type=_names(tuple(PEERS)), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--acks", choices=("all", "1"), default="all")
    parser.add_argument("--idempotent", action="store_true", help="on all sides that can be; else on none")
    parser.add_argument("--linger-ms", type=int, default=5, help="of every side")
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the records that is sent unmeasured first")
    parser.add_argument("--buffer-memory", default="64MiB", help="of slabpress")
    parser.add_argument("--json", type=Path, help="write the figures and all samples to this file")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help=f"draw {' and '.join(CHARTS)} there")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: charts of this JSON")
    return parser.parse_args(arguments)


def points_of(options: argparse.Namespace) -> list[Point]:
    """What is measured: a suite, or what was asked for by name."""
    named = (options.codecs, options.data, options.partitions, options.broker)
    if options.suite == "full" and not any(named):
        return points.full()
    return points.chosen(
        options.codecs or points.HEADLINE_CODECS,
        options.data or ["json-200"],
        options.partitions or [4],
        options.broker or ["sink"],
        keyed=options.keyed,
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """What is the same at every point."""
    return Plan(
        rounds=options.rounds or (1 if options.quick else ROUNDS),
        records=options.records,
        megabytes=options.megabytes or (QUICK_MEGABYTES if options.quick else MEGABYTES),
        warm_up=options.warm_up,
        acks=options.acks,
        idempotent=options.idempotent,
        linger_ms=options.linger_ms,
        buffer_memory=options.buffer_memory,
    )


def introduce(plan: Plan, told: dict[str, Any], points: int) -> None:
    """Say what is about to be measured."""
    for kind in told["data"].values():
        ratios = ", ".join(f"{codec} {ratio}" for codec, ratio in kind["ratios"].items())
        print(f"{kind['text']}: {kind['distinct']} distinct, {kind['bytes']['mean']:.0f} bytes each; ratios: {ratios}")
    amount = f"{plan.records} records" if plan.records else f"{plan.megabytes:g} MB"
    print(
        f"{points} points, {plan.rounds} rounds; {amount} a run (slow sides less), after {plan.warm_up:.0%} of it to "
        f"warm up (Java more); acks={plan.acks}, idempotence {'on' if plan.idempotent else 'off'}, linger "
        f"{plan.linger_ms} ms"
    )
    for text in told["left_out"]:
        print(text)
    print(flush=True)


def finish(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """Print the tables and each side's settings, and draw if asked to."""
    print(f"{tables(result['rows'])}\n\n{LEGEND}\n\nsettings; what is not named is the client's default:")
    for name, side in result["sides"].items():
        given: dict[str, Any] = next((run["settings"] for run in result["samples"] if run["side"] == name), {})
        text = ", ".join(f"{key}={value}" for key, value in given.items() if "serializer" not in key)
        print(f"- {name}: {text}. {side['why']}.")
    if options.charts is not None:
        for path in draw(result, options.charts):
            print(f"drawn: {path}")
    return 0


def main() -> int:
    """Measure, print, and write JSON if asked to; 1 if a side lost records."""
    options = parse()
    if options.charts is not None:
        pyplot()
    if options.source is not None:
        return finish(options, json.loads(options.source.read_text()))
    plan, chosen = plan_of(options), points_of(options)
    names = options.sides or (list(PEERS) if options.suite == "full" else list(HEADLINE))
    peers = {name: PEERS[name] for name in names if name != "java" or missing_tool() is None}
    told = head(chosen, peers)
    introduce(plan, told, len(chosen))
    samples: list[dict[str, Any]] = []
    wrong = None
    with Comparison(plan, peers, lambda text: print(text, file=sys.stderr, flush=True)) as comparison:
        try:
            for sample in comparison.rounds(chosen):
                samples.append(sample)  # noqa: PERF402 - what came before a failure is written
        except LostError as error:
            wrong = str(error)
    result = {"machine": machine(), "plan": plan._asdict()} | told | {"rows": summarize(samples), "samples": samples}
    if wrong is not None:
        print(f"ERROR: {wrong}", file=sys.stderr)
        write_json(options.json, result | {"error": wrong})
        return 1
    write_json(options.json, result)
    return finish(options, result)


if __name__ == "__main__":
    sys.exit(main())
