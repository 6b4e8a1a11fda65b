"""What the samples of the throughput comparison come to: medians, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.memory_figures import grid
from bench.points import Point
from bench.report import spread

HEAD = ("side", "k rec/s", "least-most", "MB/s", "CPU s/GB", "least-most", "ratio", "KB a batch")
LEGEND = """\
Medians over the rounds, and the least and the most. MB and GB are of values, before compression (decimal). CPU: seconds
of all processes of a side, those that have ended too; the broker's are not in it. ratio, KB a batch: values over bytes
of batches that the sink took, and bytes of values in a batch."""


def summarize(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each point and side, in the order in which they came first."""
    groups: dict[tuple[Point, str], list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((Point(**sample["point"]), sample["side"]), []).append(sample)
    return [_row(point, side, runs) for (point, side), runs in groups.items()]


def _row(point: Point, side: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "point": point._asdict(),
        "side": side,
        "rounds": len(runs),
        "records": runs[0]["records"],
        "records_per_s": spread([run["records"] / run["seconds"] for run in runs]),
        "mb_per_s": spread([run["megabytes"] / run["seconds"] for run in runs]),
        "cpu_s_per_gb": spread([run["cpu_seconds"] / (run["megabytes"] / 1000) for run in runs]),
        "ratio": _median_of([_sent(run) / run["arrived"]["octets"] for run in runs if run["arrived"]["octets"]]),
        "batch_bytes": _median_of(
            [_sent(run) / run["arrived"]["batches"] for run in runs if run["arrived"]["batches"]]
        ),
    }


def _sent(run: dict[str, Any]) -> float:
    """Bytes of the values that the broker took, warm-up included."""
    return float(run["megabytes"]) * 1e6 * int(run["arrived"]["records"]) / int(run["records"])


def _median_of(values: list[float]) -> float | None:
    return spread(values)["median"] if values else None


def title(point: dict[str, Any]) -> str:
    """A point in words."""
    keys = "keys" if point["keyed"] else "no keys"
    return f"{point['codec']}, {point['data']}, {point['partitions']} partitions, {keys}, {point['broker']}"


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each point."""
    points: list[dict[str, Any]] = []
    for row in rows:
        if row["point"] not in points:
            points.append(row["point"])
    parts = []
    for point in points:
        cells = [_cells(row) for row in rows if row["point"] == point]
        parts.append(f"{title(point)}\n\n{grid(HEAD, cells)}")
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    speed, cpu = row["records_per_s"], row["cpu_s_per_gb"]
    return [
        row["side"],
        f"{speed['median'] / 1e3:.0f}",
        f"{speed['min'] / 1e3:.0f}-{speed['max'] / 1e3:.0f}",
        f"{row['mb_per_s']['median']:.0f}",
        f"{cpu['median']:.1f}",
        f"{cpu['min']:.1f}-{cpu['max']:.1f}",
        "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "-" if row["batch_bytes"] is None else f"{row['batch_bytes'] / 1000:.0f}",
    ]
