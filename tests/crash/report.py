"""The tables at the end, and what is known of the records that are not as they should be."""

from __future__ import annotations

import time
from typing import Final

from tests.crash.checker import FAULTS, Offender
from tests.crash.driver import Event, Outcome
from tests.crash.plan import KINDS, STEP_KILL

_NEAR_S: Final = 20.0
_TOLD: Final = 12
_EVENTS_TOLD: Final = 40
_PROBLEMS_TOLD: Final = 20


def report(outcome: Outcome) -> str:
    """Everything that there is to tell, in lines."""
    lines = [*_faults(outcome), "", *_runs(outcome), ""]
    lines += [f"PROBLEM: {problem}" for problem in outcome.problems[:_PROBLEMS_TOLD]]
    if len(outcome.problems) > _PROBLEMS_TOLD:
        lines.append(f"and {len(outcome.problems) - _PROBLEMS_TOLD} problems more")
    for fault in FAULTS:
        offenders = [offender for offender in outcome.findings.offenders if offender.fault == fault]
        for offender in offenders[:_TOLD]:
            lines.append(_describe(offender))
    if outcome.findings.offenders:
        lines += ["", *_around(outcome)]
    words = "/".join(str(outcome.findings.count(fault)) for fault in FAULTS)
    lines.append(f"{'/'.join(FAULTS)}: {words}, {len(outcome.problems)} problems")
    return "\n".join(lines)


def _faults(outcome: Outcome) -> list[str]:
    lines = [f"{'fault':<50} {'done':>6} {'left out':>9}"]
    for kind, _ in KINDS.values():
        if outcome.faults[kind] or outcome.left_out[kind]:
            lines.append(f"{kind:<50} {outcome.faults[kind]:>6} {outcome.left_out[kind] or '':>9}")
    lines.append(f"{STEP_KILL:<50} {outcome.faults[STEP_KILL]:>6}")
    lines += [f"  {step:<48} {count:>6}" for step, count in sorted(outcome.deaths.items())]
    lines.append(f"{'all':<50} {outcome.faults.total():>6} {outcome.left_out.total() or '':>9}")
    kills = sum(count for kind, count in outcome.faults.items() if kind.startswith("kill -9"))
    return [*lines, f"{'of these kills':<50} {kills:>6}"]


def _runs(outcome: Outcome) -> list[str]:
    columns = ("run", "accepted", "stored", *FAULTS)
    lines = [" ".join(f"{name:>10}" for name in columns)]
    cells: tuple[object, ...]
    rows = outcome.findings.rows
    for row in rows:
        cells = (row.run, row.accepted, row.stored, *(row.faults[fault] for fault in FAULTS))
        lines.append(" ".join(f"{cell:>10}" for cell in cells))
    sums = (sum(row.accepted for row in rows), sum(row.stored for row in rows))
    cells = ("all", *sums, *(outcome.findings.count(fault) for fault in FAULTS))
    return [*lines, " ".join(f"{cell:>10}" for cell in cells)]


def _describe(offender: Offender) -> str:
    at_s = offender.at_ms / 1000
    when = f"{time.strftime('%H:%M:%S', time.localtime(at_s))}.{int(at_s * 10 % 10)}"
    who = f"run {offender.run} thread {offender.thread} number {offender.number}"
    return f"{offender.fault.upper()}: {who}, sent {when}: {offender.words}"


def _around(outcome: Outcome) -> list[str]:
    """What was done near the first offenders."""
    times = [offender.at_ms / 1000 for offender in outcome.findings.offenders]

    def near(event: Event) -> bool:
        return any(abs(event.at - at) < _NEAR_S for at in times)

    return ["near them:", *(str(event) for event in [event for event in outcome.events if near(event)][:_EVENTS_TOLD])]
