"""The pictures of the throughput comparison: bars of each side with each codec, the least and the most as whiskers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.points import Point

# The clients' colours are those of bench/memory_picture.py; a client's ways are shades of one.
COLORS = {
    "slabpress send": "0.45",
    "slabpress send_many": "0.2",
    "slabpress send_lines": "black",
    "confluent produce": "tab:blue",
    "confluent produce_batch": "#6baed6",
    "kafka-python": "tab:green",
    "aiokafka send_batch": "tab:cyan",
    "java": "tab:purple",
}


class Chart(NamedTuple):
    """One picture.

    Attributes:
        figure: which of a row's figures.
        scale: what it is divided by.
        title: what the bars are.
        digits: behind the point, at the bars.
    """

    figure: str
    scale: float
    title: str
    digits: int


CHARTS = {
    "throughput.svg": Chart(
        "mb_per_s", 1.0, "MB of values a second, until the last acknowledgement: more is better", 0
    ),
    "cpu.svg": Chart("cpu_s_per_gb", 1.0, "CPU seconds a GB of values, all processes of a side: less is better", 1),
}


class Bar(NamedTuple):
    """One bar."""

    side: str
    median: float
    least: float
    most: float


def panels(rows: Sequence[dict[str, Any]], chart: Chart) -> dict[str, list[Bar]]:
    """The bars of each codec, at the headline's data, partitions, keys and broker; or at the first point's."""
    found: dict[str, list[Bar]] = {}
    wanted = _wanted(rows)
    for row in rows:
        if row["point"] | {"codec": ""} == wanted:
            values = {name: value / chart.scale for name, value in row[chart.figure].items()}
            bar = Bar(row["side"], values["median"], values["min"], values["max"])
            found.setdefault(row["point"]["codec"], []).append(bar)
    return found


def _wanted(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    points = [row["point"] | {"codec": ""} for row in rows]
    if not points:
        raise SystemExit("there are no figures: nothing to draw")
    usual = Point(codec="")._asdict()
    return usual if usual in points else points[0]


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every chart from what ``--json`` wrote.

    Raises:
        SystemExit: matplotlib is not installed, or there are no figures.
    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemExit("the pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "slabpress"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, chart in CHARTS.items():
        _draw(panels(result["rows"], chart), chart, _footnote(result), folder / name)
        drawn.append(folder / name)
    return drawn


def _draw(codecs: dict[str, list[Bar]], chart: Chart, footnote: str, path: Path) -> None:
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    sides = list(dict.fromkeys(bar.side for bars in codecs.values() for bar in bars))
    size = (2.2 + 2.6 * len(codecs), 1.5 + 0.3 * len(sides))
    figure, axes = pyplot.subplots(1, len(codecs), figsize=size, dpi=110, sharey=True, sharex=True, squeeze=False)
    for place, (codec, bars) in zip(axes[0], codecs.items(), strict=True):
        _panel(place, codec, bars, sides, chart)
    axes[0][0].set_yticks(range(len(sides)), sides, fontsize=9)
    axes[0][0].invert_yaxis()
    figure.suptitle(chart.title, fontsize=11)
    figure.supxlabel(footnote, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(axes: Any, codec: str, bars: Sequence[Bar], sides: Sequence[str], chart: Chart) -> None:
    for bar in bars:
        at = sides.index(bar.side)
        whisker = [[bar.median - bar.least], [bar.most - bar.median]]
        style = {"ecolor": "0.6", "capsize": 2, "error_kw": {"linewidth": 1}}
        axes.barh(at, bar.median, xerr=whisker, color=COLORS.get(bar.side, "tab:gray"), height=0.75, **style)
        axes.annotate(
            f"{bar.median:,.{chart.digits}f}",
            (bar.most, at),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_title(codec, fontsize=10)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _footnote(result: dict[str, Any]) -> str:
    point, machine, plan = _wanted(result["rows"]), result["machine"], result["plan"]
    keys = "keys" if point["keyed"] else "no keys"
    data = result["data"][point["data"]]["text"]
    return (
        f"{data}, {point['partitions']} partitions, {keys}, acks={plan['acks']}, {point['broker']} on the same "
        f"{machine['cpus']} CPUs ({machine['processor']}), medians of {plan['rounds']} rounds, whiskers: least and most"
    )
