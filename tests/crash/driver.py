"""The rig: plays the two plans of faults against the job and the brokers, ends everything, and has the log checked."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.crash import plan
from tests.crash.brokers import BrokerTorments
from tests.crash.checker import Checker, Findings
from tests.crash.plan import KINDS, Fault
from tests.crash.processes import find
from tests.crash.records import CODECS, PARTITIONS, topic_of
from tests.crash.runs import Run
from tests.crash.torments import Torments
from tests.support.kafka import KafkaCluster, read_back

_STEP_S: Final = 0.05
_SAY_EVERY_S: Final = 10.0
# A fault that cannot be done, as nobody is there yet whom it could be done to, is tried for so long.
_PATIENCE_S: Final = 20.0
_READ_TIMEOUT_S: Final = 1200.0
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - looked at, never written to


class Event(NamedTuple):
    """A fault that was done."""

    at: float
    kind: str
    words: str

    def __str__(self) -> str:
        return (
            f"{time.strftime('%H:%M:%S', time.localtime(self.at))}.{int(self.at * 10 % 10)} {self.kind}: {self.words}"
        )


class Outcome(NamedTuple):
    """What came of it all.

    Attributes:
        faults: how many of each kind were done.
        deaths: of these, how often children killed themselves at each step.
        left_out: how many could not be.
        events: all of them, in order.
        findings: what is in the log.
        problems: whatever else is not as it should be.
        folder: where the files of the runs are.
    """

    faults: Counter[str]
    deaths: Counter[str]
    left_out: Counter[str]
    events: list[Event]
    findings: Findings
    problems: list[str]
    folder: Path

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return self.findings.is_clean and not self.problems


class Driver:
    """One torment of one cluster.

    Args:
        cluster: three brokers behind proxies, with ``brokers.CONFIG``.
        seed: decides the faults, their times, and the records.
        seconds: how long faults are done.
        kinds: which, by their short names; all unless said.
        say: told what happens, line by line.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        seed: int,
        seconds: float,
        kinds: Sequence[str] = tuple(KINDS),
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._seed = seed
        self._seconds = seconds
        self._kinds = kinds
        self._say = say
        self._mark = f"crash-{uuid.uuid4().hex}"
        self._shared_memory = _shared_memory()
        self._folder = Path(tempfile.mkdtemp(prefix="slabpress-crash-"))
        self._brokers = BrokerTorments(cluster)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._done: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._problems: list[str] = []

    def run(self) -> Outcome:
        """Do it all."""
        self._brokers.create_topics()
        torments = Torments(self._new_run, self._cluster.proxies)
        for_brokers = threading.Thread(target=self._torment_brokers, name="broker torments")
        for_brokers.start()
        try:
            self._torment(torments)
        finally:
            self._over.set()
            torments.undo_all()
            for_brokers.join()
        self._say("the last fault is over")
        torments.run.ask_to_end()
        for run in torments.runs:
            if run.asked_to_end:
                run.await_end()
            run.await_orphans()
            run.finish()
            self._problems += [f"run {run.number}: {problem}" for problem in run.problems]
            if run.orphans_said:
                self._say(f"run {run.number}: {run.orphans_said}")
        self._problems += self._left_behind()
        findings = self._check(torments.runs)
        for run in torments.runs:
            run.tally.close()
        deaths = Counter(death for run in torments.runs for death in run.deaths)
        self._done[plan.STEP_KILL] = deaths.total()
        return Outcome(self._done, deaths, self._left_out, sorted(self._events), findings, self._problems, self._folder)

    def _new_run(self, number: int) -> Run:
        return Run(number, self._seed, self._cluster.proxied_bootstrap_servers, self._folder, self._mark)

    # --- the faults -----------------------------------------------------------------------------------------------

    def _torment(self, torments: Torments) -> None:
        end = time.monotonic() + self._seconds
        self._wait(torments, end, lambda: torments.run.tally.accepted > 0)
        for fault in plan.faults(self._seed, self._kinds, of_brokers=False):
            self._wait(torments, min(end, time.monotonic() + fault.gap_s))
            if time.monotonic() >= end:
                return
            done = self._try(torments, fault, min(end, time.monotonic() + _PATIENCE_S))
            if done is None:
                with self._lock:
                    self._left_out[fault.kind] += 1
            else:
                self._note(fault.kind, done)
        self._wait(torments, end)

    def _try(self, torments: Torments, fault: Fault, until: float) -> str | None:
        done = torments.do(fault)
        while done is None and time.monotonic() < until:
            self._wait(torments, time.monotonic() + 0.2)
            done = torments.do(fault)
        return done

    def _wait(self, torments: Torments, until: float, condition: Callable[[], bool] = lambda: False) -> None:
        """Let the time pass, undo what is due, and say how it goes."""
        while time.monotonic() < until and not condition():
            torments.undo_due()
            self._say_progress(torments)
            time.sleep(_STEP_S)

    _said_at = 0.0

    def _say_progress(self, torments: Torments) -> None:
        if time.monotonic() - self._said_at < _SAY_EVERY_S:
            return
        self._said_at = time.monotonic()
        accepted = sum(run.tally.accepted for run in torments.runs)
        draining = [run.number for run in torments.draining]
        words = f", runs {draining} drain" if draining else ""
        self._say(f"run {torments.run.number}: {accepted} records, {self._done.total()} faults{words}")

    def _torment_brokers(self) -> None:
        try:
            for fault in plan.faults(self._seed, self._kinds, of_brokers=True):
                if self._over.wait(fault.gap_s):
                    return
                self._note(fault.kind, "begins")
                self._note(fault.kind, self._brokers.do(fault), count=True)
        except Exception:  # noqa: BLE001 - what goes wrong in this thread must be heard of
            self._problems.append(f"the brokers' torments: {traceback.format_exc()}")

    def _note(self, kind: str, words: str, *, count: bool | None = None) -> None:
        event = Event(time.time(), kind, words)
        with self._lock:
            self._events.append(event)
            self._done[kind] += words != "begins" if count is None else count
        self._say(str(event))

    # --- the end --------------------------------------------------------------------------------------------------

    def _left_behind(self) -> list[str]:
        """Processes and files that should be gone."""
        processes = [f"{found.role} {found.pid} of {found.mark} is still there" for found in find(self._mark)]
        files = [f"{_SHARED_MEMORY / name} was left behind" for name in _shared_memory() - self._shared_memory]
        return processes + files

    def _check(self, runs: list[Run]) -> Findings:
        claims = {(run.number, thread): claim for run in runs for thread, claim in enumerate(run.tally.claims)}
        checker = Checker(self._seed, claims, PARTITIONS)
        for codec in range(len(CODECS)):
            topic = topic_of(codec)
            seen = 0
            for record in read_back(self._cluster.bootstrap_servers, topic, timeout_s=_READ_TIMEOUT_S):
                checker.see(topic, record)
                seen += 1
            self._say(f"{topic}: {seen} records read")
        return checker.finish()


def _shared_memory() -> set[str]:
    return {entry.name for entry in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()


def say_on_stdout(words: str) -> None:
    """Write a line at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()
