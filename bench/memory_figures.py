"""What a run of the memory experiment comes to: figures from its samples, the table, the picture."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from bench.memory_messages import MESSAGE_BYTES

MIB = 1 << 20
COLUMNS = (
    ("side", "{side}", 16),
    ("codec", "{codec}", 6),
    ("base", "{base}", 6),
    ("peak", "{peak}", 7),
    ("peak/conf", "{ratio}", 9),
    ("added/conf", "{added}", 10),
    ("growth", "{growth}", 7),
    ("vs none", "{versus}", 7),
    ("heap", "{heap}", 7),
    ("accepted", "{accepted}", 9),
    ("in stall", "{stall}", 9),
    ("delivered", "{delivered}", 10),
    ("died", "{died}", 4),
)
LEGEND = """\
MiB throughout. base: memory before the first producer is made (interpreter or JVM, and the messages). peak: the most
that all processes of the side took together, PSS, every 100 ms, shared memory counted once. peak/conf: peak over the
memory that was configured. added/conf: the same without base. growth: how much the peak of the stall is above memory
one second into the stall. vs none: peak over the peak without compression. heap (Java): what the collector found
reachable at the end of the stall. accepted: by send() in all, and in stall: while acknowledgements were slow or
stopped. delivered: records in the topic afterwards, of those accepted. died: no, or why."""


def summarize(run: dict[str, Any], configured_bytes: int, stored: int) -> dict[str, Any]:
    """Add the figures to a run.

    Args:
        run: as memory_run.measure() made it.
        configured_bytes: the memory setting of all producers together.
        stored: the records that the topic held afterwards.
    """
    samples, marks = run["samples"], run["marks"]
    peak = max((sample[1] for sample in samples), default=0)
    released = marks.get("released", float("inf"))
    stall = [sample for sample in samples if marks.get("trickle", float("inf")) <= sample[0] < released]
    late = [sample[1] for sample in stall if sample[0] >= marks["trickle"] + 1]
    counts = run["counts"]
    return run | {
        "configured_bytes": configured_bytes,
        "peak_bytes": peak,
        "peak_over_configured": peak / configured_bytes,
        "added_over_configured": (peak - run["base_bytes"]) / configured_bytes,
        "growth_bytes": max(late) - late[0] if late else 0,
        "accepted_bytes": counts["accepted"] * MESSAGE_BYTES,
        "accepted_in_stall_bytes": (stall[-1][2] - stall[0][2]) * MESSAGE_BYTES if stall else 0,
        "stored": stored,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The figures for people."""
    none = {run["side"]: run["peak_bytes"] for run in runs if run["codec"] == "none"}
    lines = ["  ".join(_cell(name, width, index) for index, (name, _, width) in enumerate(COLUMNS))]
    for run in runs:
        texts = _texts(run, none.get(run["side"], 0))
        cells = [_cell(form.format(**texts), width, index) for index, (_, form, width) in enumerate(COLUMNS)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(text: str, width: int, index: int) -> str:
    return text.ljust(width) if index < 2 or index == len(COLUMNS) - 1 else text.rjust(width)


def _texts(run: dict[str, Any], none_bytes: int) -> dict[str, str]:
    accepted = run["counts"]["accepted"]
    share = run["stored"] / accepted if accepted else 0.0
    versus = f"{run['peak_bytes'] / none_bytes:.2f}" if none_bytes else "-"
    heap = run["heap_at_stall_bytes"]
    return {
        "side": run["side"],
        "codec": run["codec"],
        "base": f"{run['base_bytes'] / MIB:.0f}",
        "peak": f"{run['peak_bytes'] / MIB:.1f}",
        "ratio": f"{run['peak_over_configured']:.2f}",
        "added": f"{run['added_over_configured']:.2f}",
        "growth": f"{run['growth_bytes'] / MIB:.1f}",
        "versus": versus,
        "heap": f"{heap / MIB:.0f}" if heap else "-",
        "accepted": f"{run['accepted_bytes'] / MIB:.0f}",
        "stall": f"{run['accepted_in_stall_bytes'] / MIB:.1f}",
        "delivered": "-" if not accepted else "all" if run["stored"] == accepted else f"{100 * share:.2f} %",
        "died": run["died"] or run["error"][:60] or "no",
    }


def draw(runs: list[dict[str, Any]], codec: str, producers: int, path: Path) -> None:
    """Draw memory over time, one line a side, with the configured limit.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    chosen = [run for run in runs if run["codec"] == codec and run["samples"]]
    if not chosen:
        raise SystemExit(f"no side ran with {codec}: nothing to draw")
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemExit("the picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(10, 5.6), dpi=110)
    for run in chosen:
        # Acknowledgements stall at second 0 of the picture, whenever the side was ready for it.
        zero = run["marks"].get("trickle", 0.0)
        times = [sample[0] - zero for sample in run["samples"] if sample[1]]
        added = [max(0.1, (sample[1] - run["base_bytes"]) / MIB) for sample in run["samples"] if sample[1]]
        ours = run["side"] == "slabpress"
        style = {"linewidth": 2.6, "color": "black"} if ours else {"linewidth": 1.4}
        axes.plot(times, added, label=run["side"], **style)
        if run["died"]:
            axes.plot(times[-1:], added[-1:], marker="x", color="red", markersize=9)
    _decorate(axes, chosen[0], codec, producers)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _decorate(axes: Any, run: dict[str, Any], codec: str, producers: int) -> None:
    limit, marks = run["configured_bytes"] / MIB, run["marks"]
    axes.axhline(limit, color="red", linestyle="--", linewidth=1.2, label=f"configured: {limit:.0f} MiB")
    if "released" in marks:
        zero = marks["trickle"]
        stopped, released = marks["stopped"] - zero, marks["released"] - zero
        axes.axvspan(0, stopped, color="0.93", zorder=0)
        axes.axvspan(stopped, released, color="0.86", zorder=0)
        for at, text in ((0.0, "trickle"), (stopped, "stopped"), (released, "released")):
            axes.text(at, 1.01, f" {text}", transform=axes.get_xaxis_transform(), fontsize=8)
        axes.set_xlim(-6, released + 8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("seconds since acknowledgements slowed down")
    axes.set_ylabel("MiB above the process before its first producer")
    held = f"{producers} producers, {limit:.0f} MiB of buffer memory in all, {codec}"
    title = f"{held}: memory while acknowledgements are slow (KAFKA-6512)"
    axes.set_title(title, pad=18, fontsize=11)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
