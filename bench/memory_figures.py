"""What a run of the memory experiment comes to: figures from its samples, and the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.memory_messages import MESSAGE_BYTES
from bench.memory_run import Sample

MIB = 1 << 20
NEVER = float("inf")
HEAD: tuple[str, ...] = ("side", "codec", "base", "peak", "peak/limit", "vs none", "growth", "heap")
HEAD += ("accepted", "in stall", "sent", "stored", "died")
PROMISES: tuple[str, ...] = ("codec", "planned", "added", "kept", "above", "samples", "checks", "violations")
PROMISES += ("read", "lost", "doubled", "reordered", "foreign")
LEGEND = """\
Memory in MiB: PSS of all processes of a side, every 100 ms, what they share counted once. base: before the first
producer is made (interpreter or JVM, and the messages). peak: the most. peak/limit: peak over the memory that was
configured. vs none: peak over the peak without compression. growth: the most in the stop phase over what it was one
second after the stop, without pages of files: a process's share of an interpreter's or a library's pages changes with
what else runs on the machine. heap (Java): what the collector found reachable at the end of the stop phase. accepted:
MiB of values that send() took, and in stall: of these while acknowledgements were slow or stopped. sent, stored:
records that send() took (of a killed side: until its last report), and records in the topic at the end. died: no, or
what ended the side."""
PROMISES_LEGEND = """\
planned: the plan's total, MiB. added: peak less base, MiB; kept: whether no sample was above the plan, and above: how
many of the samples were. checks: how often one producer's records, slabs, output buffers and batches were added up
while it ran, samples times producers if the process kept pace, and violations: how often they were not what they must
be. read: records read back by confluent-kafka, each compared to the byte with what its producer sent; reordered: within
a producer and topic-partition."""


def summarize(run: dict[str, Any], configured_bytes: int, stored: int) -> dict[str, Any]:
    """Add the figures to a run.

    Args:
        run: as memory_run.measure() made it.
        configured_bytes: the memory setting of all producers together.
        stored: the records that the topic held afterwards.
    """
    marks = run["marks"]
    samples = [Sample(*sample) for sample in run["samples"]]
    peak = max((sample.memory_bytes for sample in samples), default=0)
    released = marks.get("released", NEVER)
    stall = [sample for sample in samples if marks.get("trickle", NEVER) <= sample.at_s < released]
    late = [sample for sample in stall if sample.at_s >= marks.get("stopped", NEVER) + 1]
    planned = run["planned_bytes"]
    above = [sample.at_s for sample in samples if planned and sample.memory_bytes - run["base_bytes"] > planned]
    return run | {
        "configured_bytes": configured_bytes,
        "peak_bytes": peak,
        "peak_over_configured": peak / configured_bytes,
        "growth_bytes": _growth([sample.data_bytes for sample in late]),
        "growth_with_files_bytes": _growth([sample.memory_bytes for sample in late]),
        "above_plan_at_s": above,
        "accepted_bytes": run["counts"]["accepted"] * MESSAGE_BYTES,
        "accepted_in_stall_bytes": stall[-1].accepted_bytes - stall[0].accepted_bytes if stall else 0,
        "stored": stored,
    }


def _growth(sizes: list[int]) -> int | None:
    return max(sizes) - sizes[0] if sizes else None


def broken(runs: Iterable[dict[str, Any]]) -> list[str]:
    """What slabpress promised and did not keep."""
    found = []
    for run in runs:
        if run["side"] != "slabpress":
            continue
        verdict = run["verdict"] or {}
        wrong = [f"{count} records {name}" for name, count in verdict.items() if name != "read" and count]
        wrong += [f"died: {run['died']}"] if run["died"] else []
        wrong += [f"{run['counts']['failed']} records failed: {run['error']}"] if run["error"] else []
        wrong += [f"{len(run['above_plan_at_s'])} samples above the plan"] if run["above_plan_at_s"] else []
        wrong += run["violations"]
        found += [f"slabpress {run['codec']}: {text}" for text in wrong]
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """The figures of every run for people."""
    none = {run["side"]: run["peak_bytes"] for run in runs if run["codec"] == "none"}
    return grid(HEAD, [_row(run, none.get(run["side"], 0)) for run in runs])


def promises(runs: list[dict[str, Any]]) -> str:
    """What slabpress promises, and what it was."""
    return grid(PROMISES, [_promise(run) for run in runs if run["side"] == "slabpress"])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, aligned so that it is one without it."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _row(run: dict[str, Any], none_bytes: int) -> list[str]:
    heap, growth = run["heap_at_stall_bytes"], run["growth_bytes"]
    return [
        run["side"],
        run["codec"],
        f"{run['base_bytes'] / MIB:.0f}",
        f"{run['peak_bytes'] / MIB:.1f}",
        f"{run['peak_over_configured']:.2f}",
        f"{run['peak_bytes'] / none_bytes:.2f}" if none_bytes else "-",
        "-" if growth is None else f"{growth / MIB:.1f}",
        f"{heap / MIB:.0f}" if heap else "-",
        f"{run['accepted_bytes'] / MIB:.0f}",
        f"{run['accepted_in_stall_bytes'] / MIB:.1f}",
        str(run["counts"]["accepted"]),
        str(run["stored"]),
        _end(run),
    ]


def _end(run: dict[str, Any]) -> str:
    if run["died"]:
        return str(run["died"][:60])
    failed = run["counts"]["failed"]
    return f"no; {failed} failed: {run['error'][:60]}" if run["error"] else "no"


def _promise(run: dict[str, Any]) -> list[str]:
    verdict = run["verdict"]
    return [
        run["codec"],
        f"{run['planned_bytes'] / MIB:.1f}",
        f"{(run['peak_bytes'] - run['base_bytes']) / MIB:.1f}",
        "no" if run["above_plan_at_s"] or not run["planned_bytes"] else "yes",
        str(len(run["above_plan_at_s"])),
        str(len(run["samples"])),
        str(run["conservation_checks"]),
        str(len(run["violations"])),
        *([str(count) for count in verdict.values()] if verdict else ["-"] * 5),
    ]
