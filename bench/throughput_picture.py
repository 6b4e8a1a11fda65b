"""The pictures of the throughput comparison: bars of each side with each codec, the least and the most as whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.drawing import pyplot
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


CUT_FROM = 3.0


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
    wanted = _pictured(rows)
    for row in rows:
        if row["point"] | {"codec": ""} == wanted:
            values = {name: value / chart.scale for name, value in row[chart.figure].items()}
            bar = Bar(row["side"], values["median"], values["min"], values["max"])
            found.setdefault(row["point"]["codec"], []).append(bar)
    return found


def _pictured(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    points = [row["point"] | {"codec": ""} for row in rows]
    if not points:
        raise SystemExit("there are no figures: nothing to draw")
    usual = Point(codec="")._asdict()
    return usual if usual in points else points[0]


def longest(codecs: dict[str, list[Bar]]) -> float:
    """The length of the longest bar; one side's that would be three times as long as all others' is cut."""
    lengths: dict[str, float] = {}
    for bar in (bar for bars in codecs.values() for bar in bars):
        lengths[bar.side] = max(bar.most, lengths.get(bar.side, 0.0))
    first, *rest = sorted(lengths.values(), reverse=True)
    return 1.3 * rest[0] if rest and first > CUT_FROM * rest[0] else first


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every chart from what ``--json`` wrote.

    Raises:
        SystemExit: matplotlib is not installed, or there are no figures.
    """
    plots = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, chart in CHARTS.items():
        _draw(plots, panels(result["rows"], chart), chart, _footnote(result), folder / name)
        drawn.append(folder / name)
    return drawn


def _draw(plots: Any, codecs: dict[str, list[Bar]], chart: Chart, footnote: str, path: Path) -> None:
    sides = list(dict.fromkeys(bar.side for bars in codecs.values() for bar in bars))
    size = (2.2 + 2.6 * len(codecs), 1.5 + 0.3 * len(sides))
    figure, axes = plots.subplots(1, len(codecs), figsize=size, dpi=110, sharey=True, sharex=True, squeeze=False)
    limit = longest(codecs)
    for place, (codec, bars) in zip(axes[0], codecs.items(), strict=True):
        _panel(place, bars, sides, chart, limit)
        place.set_title(codec, fontsize=10)
        place.set_xlim(0, 1.25 * limit)
    axes[0][0].set_yticks(range(len(sides)), sides, fontsize=9)
    axes[0][0].invert_yaxis()
    figure.suptitle(chart.title, fontsize=11)
    figure.supxlabel(footnote, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plots.close(figure)


def _panel(axes: Any, bars: Sequence[Bar], sides: Sequence[str], chart: Chart, limit: float) -> None:
    for bar in bars:
        at = sides.index(bar.side)
        whisker = [[bar.median - bar.least], [bar.most - bar.median]] if bar.most <= limit else None
        length = bar.median if bar.most <= limit else limit
        style = {"ecolor": "0.6", "capsize": 2, "error_kw": {"linewidth": 1}}
        axes.barh(at, length, xerr=whisker, color=COLORS.get(bar.side, "tab:gray"), height=0.75, **style)
        axes.annotate(
            f"{bar.median:,.{chart.digits}f}" + ("" if bar.most <= limit else " (cut)"),
            (min(bar.most, limit), at),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _footnote(result: dict[str, Any]) -> str:
    point, machine, plan = _pictured(result["rows"]), result["machine"], result["plan"]
    keys = "keys" if point["keyed"] else "no keys"
    data = result["data"][point["data"]]["text"]
    return (
        f"{data}, {point['partitions']} partitions, {keys}, acks={plan['acks']}, {point['broker']} on the same "
        f"{machine['cpus']} CPUs ({machine['processor']}), medians of {plan['rounds']} rounds, whiskers: least and most"
    )
