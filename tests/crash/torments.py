"""How each kind of fault is done, but for the brokers' own: to the job's processes, and to their connections.

A torment returns what it has done, in words, or None where it cannot be done now. What has to be undone later is kept
with its time.
"""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.crash import plan
from tests.crash.plan import Fault
from tests.crash.processes import JOB, NETWORK, WORKER, Found
from tests.crash.runs import Run
from tests.support.proxy import Proxy

_SLOW_BYTES_PER_S: Final = (2_000, 20_000, 200_000)
_CUT_WITHIN_BYTES: Final = 100_000
_ORPHANS_AT_ONCE: Final = 1


class Undo:
    """What is to be undone, and when."""

    def __init__(self) -> None:
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Have this done so much later."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._count), action))

    def due(self) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def all(self) -> None:
        """Do everything now."""
        while self._later:
            heapq.heappop(self._later)[2]()


class Torments:
    """Harms one run of the job after the other.

    Args:
        new_run: starts another run of the job.
        proxies: the proxies of the brokers.

    Attributes:
        runs: all of them; the last is the one that is going on.
    """

    def __init__(self, new_run: Callable[[int], Run], proxies: Mapping[int, Proxy]) -> None:
        self._new_run = new_run
        self._proxies = list(proxies.values())
        self._undo = Undo()
        self.runs = [new_run(1)]
        self._ways: dict[str, Callable[[Fault], str | None]] = {
            plan.WORKER_KILL: lambda fault: self._kill(fault, WORKER),
            plan.NETWORK_KILL: lambda fault: self._kill(fault, NETWORK),
            plan.JOB_KILL: self._kill_job,
            plan.JOB_WORKER_KILL: self._kill_job_and_worker,
            plan.JOB_END: self._end_job,
            plan.WORKER_STOP: lambda fault: self._stop(fault, WORKER),
            plan.NETWORK_STOP: lambda fault: self._stop(fault, NETWORK),
            plan.JOB_STOP: lambda fault: self._stop(fault, JOB),
            plan.CUT: self._cut,
            plan.CUT_AMID: self._cut_amid,
            plan.LOST_ACKS: self._lose_acks,
            plan.DELAY: self._delay,
            plan.THROTTLE: self._throttle,
            plan.HALF_OPEN: self._be_silent,
        }

    @property
    def run(self) -> Run:
        """The run that is going on."""
        return self.runs[-1]

    @property
    def draining(self) -> list[Run]:
        """Runs whose orphans still deliver."""
        return [run for run in self.runs if run.killed_at is not None and run.find()]

    @property
    def alive(self) -> list[Run]:
        """Runs whose job is there: the one that is going on, and those that are about to end."""
        return [run for run in self.runs if not run.is_over]

    def do(self, fault: Fault) -> str | None:
        """Do a fault now; what was done, or None if it cannot be."""
        return self._ways[fault.kind](fault)

    def undo_due(self) -> None:
        """Undo what has lasted long enough."""
        self._undo.due()

    def undo_all(self) -> None:
        """Undo everything, for the end."""
        self._undo.all()

    # --- processes ------------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault, role: str) -> str | None:
        # One that has not begun to work is left alone: three deaths in a row before that end the producer.
        victim = _choose([found for run in self.alive for found in run.serving(role)], fault.which)
        return f"{_words(victim)} killed" if victim is not None and victim.send(signal.SIGKILL) else None

    def _kill_job(self, _: Fault) -> str | None:
        run = self.run
        if not run.tally.accepted or len(self.draining) >= _ORPHANS_AT_ONCE or not run.may_be_killed:
            return None
        run.kill()
        self.runs.append(self._new_run(run.number + 1))
        return f"run {run.number} killed after {run.tally.accepted} records"

    def _kill_job_and_worker(self, fault: Fault) -> str | None:
        if len([found for found in self.run.serving(WORKER) if not found.is_stopped]) < 2:
            return None  # without a worker left the records are lost, as DESIGN.md says
        victim = _choose(self.run.serving(WORKER), fault.which)
        killed = self._kill_job(fault)
        if killed is None or victim is None:
            return None
        time.sleep(fault.detail / 4)
        return f"{killed}, then {_words(victim)}: {victim.send(signal.SIGKILL)}"

    def _end_job(self, _: Fault) -> str | None:
        run = self.run
        if not run.tally.accepted or len(self.alive) > 1:
            return None
        run.ask_to_end()
        self.runs.append(self._new_run(run.number + 1))
        return f"run {run.number} told to end after {run.tally.accepted} records"

    def _stop(self, fault: Fault, role: str) -> str | None:
        runs = [*self.draining, *self.alive] if fault.detail < 1 / 2 else [self.run]
        found = [one for run in runs for one in run.find(role) if not one.is_stopped]
        victim = _choose(found, fault.which)
        if victim is None or not victim.send(signal.SIGSTOP):
            return None
        self._undo.after(fault.for_s, lambda: victim.send(signal.SIGCONT))
        return f"{_words(victim)} stopped for {fault.for_s:.1f} s"

    # --- connections ----------------------------------------------------------------------------------------------

    def _proxy(self, fault: Fault) -> tuple[int, Proxy]:
        number = int(fault.which * len(self._proxies))
        return number + 1, self._proxies[number]

    def _cut(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        proxy.kill_connections()
        return f"broker {number}"

    def _cut_amid(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        up = fault.detail < 1 / 2
        after = int(fault.detail * 2 % 1 * (_CUT_WITHIN_BYTES if up else 300))
        proxy.cut_after(after, "up" if up else "down")
        return f"broker {number}, {after} bytes {'to' if up else 'from'} it"

    def _lose_acks(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        proxy.down.swallow = True
        self._undo.after(fault.for_s, proxy.stop_swallowing)
        return f"broker {number}, for {fault.for_s:.1f} s"

    def _delay(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        flow = proxy.up if fault.detail < 1 / 2 else proxy.down
        flow.delay_ms = 20 + fault.detail * 2 % 1 * 2000
        self._undo.after(fault.for_s, lambda: setattr(flow, "delay_ms", 0.0))
        return f"broker {number}, {flow.delay_ms:.0f} ms for {fault.for_s:.1f} s"

    def _throttle(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        rate = _SLOW_BYTES_PER_S[int(fault.detail * len(_SLOW_BYTES_PER_S))]
        proxy.up.bytes_per_s = rate
        self._undo.after(fault.for_s, lambda: setattr(proxy.up, "bytes_per_s", 0.0))
        return f"broker {number}, {rate} bytes/s for {fault.for_s:.1f} s"

    def _be_silent(self, fault: Fault) -> str:
        number, proxy = self._proxy(fault)
        proxy.pause()
        self._undo.after(fault.for_s, proxy.resume)
        return f"broker {number}, for {fault.for_s:.1f} s"


def _choose(found: list[Found], which: float) -> Found | None:
    return found[int(which * len(found))] if found else None


def _words(found: Found) -> str:
    return f"{found.role.rpartition('.')[2]} {found.pid} of run {found.mark.rstrip('.').rpartition('-')[2]}"
