"""The picture of the memory experiment: memory over time, one line a side, with the limit that was configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.drawing import pyplot
from bench.memory_figures import MIB
from bench.memory_run import Sample

COLORS = {
    "slabpress": "black",
    "confluent-kafka": "tab:blue",
    "kafka-python": "tab:green",
    "aiokafka": "tab:cyan",
    "java 1.0.0": "tab:red",
    "java 1.1.0": "tab:orange",
    "java 4.3.1": "tab:purple",
}
TICKS_MIB = (10, 20, 50, 100, 200, 500, 1000, 2000, 4000)


def draw(runs: list[dict[str, Any]], codec: str, producers: int, path: Path) -> None:
    """Draw the runs with this codec to a file; its name's ending says which format.

    Raises:
        SystemExit: matplotlib is not installed, or there is no such run.
    """
    chosen = [run for run in runs if run["codec"] == codec and run["samples"]]
    if not chosen:
        raise SystemExit(f"no side ran with {codec}: nothing to draw")
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(10, 5.6), dpi=110)
    for run in sorted(chosen, key=lambda run: -int(run["peak_bytes"])):
        _line(axes, run)
    _decorate(axes, chosen, codec, producers)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plots.close(figure)


def _line(axes: Any, run: dict[str, Any]) -> None:
    # Acknowledgements slow down at second 0 of the picture, whenever the side was ready for it.
    zero = run["marks"].get("trickle", 0.0)
    samples = [Sample(*sample) for sample in run["samples"]]
    times = [sample.at_s - zero for sample in samples if sample.memory_bytes]
    sizes = [sample.memory_bytes / MIB for sample in samples if sample.memory_bytes]
    ours = run["side"] == "slabpress"
    label = f"{run['side']}: peak {run['peak_bytes'] / MIB:.0f}"
    color = COLORS[run["side"]]
    axes.plot(times, sizes, label=label, color=color, linewidth=2.6 if ours else 1.5, zorder=3 if ours else 2)
    if run["planned_bytes"]:
        planned = (run["planned_bytes"] + run["base_bytes"]) / MIB
        axes.axhline(
            planned, color=color, linestyle=":", linewidth=1.4, label=f"slabpress's plan + base: {planned:.0f}"
        )
    if run["died"]:
        axes.plot(times[-1:], sizes[-1:], marker="X", color=color, markersize=9, zorder=4)


def _decorate(axes: Any, runs: list[dict[str, Any]], codec: str, producers: int) -> None:
    limit = runs[0]["configured_bytes"] / MIB
    axes.axhline(limit, color="red", linestyle="--", linewidth=1.4, label=f"configured: {limit:.0f}")
    whole = next((run["marks"] for run in runs if "released" in run["marks"]), None)
    if whole is not None:
        end = max(run["samples"][-1][0] - run["marks"].get("trickle", 0.0) for run in runs)
        _phases(axes, whole["stopped"] - whole["trickle"], whole["released"] - whole["trickle"], end)
    axes.set_yscale("log")
    axes.set_ylim(bottom=10)
    axes.set_yticks(TICKS_MIB, [str(tick) for tick in TICKS_MIB])
    axes.minorticks_off()
    axes.set_ylim(10, max(int(run["peak_bytes"]) for run in runs) / MIB * 1.3)
    axes.set_xlabel("seconds since acknowledgements slowed down")
    axes.set_ylabel("MiB of all processes (PSS, logarithmic)")
    cross = "; X: the side died" if any(run["died"] for run in runs) else ""
    title = f"{producers} producers with {limit:.0f} MiB of buffer memory in all, {codec} (KAFKA-6512){cross}"
    axes.set_title(title, pad=20, fontsize=11)
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False, title="MiB")


def _phases(axes: Any, stopped: float, released: float, end: float) -> None:
    axes.axvspan(0, stopped, color="0.94", zorder=0)
    axes.axvspan(stopped, released, color="0.87", zorder=0)
    middles = (
        (-2.5, "free"),
        (stopped / 2, "trickle"),
        ((stopped + released) / 2, "stopped"),
        ((released + end) / 2, "free"),
    )
    for at, text in middles:
        axes.text(at, 1.015, text, transform=axes.get_xaxis_transform(), fontsize=9, ha="center")
    axes.set_xlim(-6, end + 0.5)
