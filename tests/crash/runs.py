"""The runs of the job, as the rig starts, ends and kills them, and what each has left to be checked."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.crash.look import arenas_of
from tests.crash.processes import JOB, MARK, NETWORK, WORKER, Found, find
from tests.crash.records import CODECS
from tests.crash.steps import FILE
from tests.crash.tally import Tally
from tests.support.kafka_install import spawn

# Longer than any delivery timeout of the job, on a machine that is busy.
END_TIMEOUT_S: Final = 420.0
_PROJECT: Final = Path(__file__).parents[2]


class Run:
    """One run of the job.

    Args:
        number: counts the runs, from 1.
        seed: that of the records.
        bootstrap: the proxies' addresses.
        folder: where its files go.
        mark: what it, and its children, have in their environment.

    Attributes:
        killed_at: when the rig has killed it, or None.
        asked_to_end: the rig has told it to end.
        problems: what the rig has found wrong with it.
    """

    def __init__(self, number: int, seed: int, bootstrap: str, folder: Path, mark: str) -> None:
        self.number = number
        self.mark = f"{mark}-{number}."
        self.killed_at: float | None = None
        self.asked_to_end = False
        self.problems: list[str] = []
        self.started_at = time.monotonic()
        self._base = folder / f"run-{number}"
        self.tally = Tally(self._file("tally"), new=True)
        names = ("tally", "problems", "summary", "orphan_log")
        spec = {name: str(self._file(name)) for name in names} | {"run": number, "seed": seed, "bootstrap": bootstrap}
        self._file("spec").write_text(json.dumps(spec))
        with self._file("stderr").open("wb") as errors:
            self.process = spawn(
                ["env", *self._environment(), sys.executable, "-m", JOB, str(self._file("spec"))],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
            )

    def _environment(self) -> list[str]:
        """The mark, where children write how they die, and where those find the modules that make them mortal."""
        return [f"{MARK}={self.mark}", f"{FILE}={self._file('deaths')}", f"PYTHONPATH={_PROJECT}"]

    @property
    def deaths(self) -> list[str]:
        """How its children killed themselves, each in a few words."""
        return self._lines("deaths")

    def _file(self, name: str) -> Path:
        return self._base.with_name(f"{self._base.name}.{name}")

    def find(self, role: str = "") -> list[Found]:
        """Its living processes, all or of one role."""
        return [found for found in find(self.mark) if role in ("", found.role)]

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, however."""
        return self.process.poll() is not None

    def serving(self, role: str) -> list[Found]:
        """Children of a role that have every producer's arena mapped, and so were told all that they must know."""
        return [found for found in self.find(role) if found.arenas >= len(CODECS)]

    @property
    def may_be_killed(self) -> bool:
        """Whether somebody is left to deliver what was accepted: without these two it is lost, as DESIGN.md says."""
        return bool(self.serving(NETWORK)) and bool(self.serving(WORKER))

    def kill(self) -> None:
        """Kill -9 of the job itself; its children are orphans from then on."""
        self.killed_at = time.time()
        self.process.kill()
        self.process.wait()
        self._say(b"")

    def ask_to_end(self) -> None:
        """Have the job end by itself; it may take its time."""
        self.asked_to_end = True
        self._say(b"end\n")

    def await_end(self) -> None:
        """Wait for a job that was asked to end, and take note of how it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        if not self.is_over:
            self.problems.append(f"the job did not end within {END_TIMEOUT_S:g} s; {self._look()}")
            self.process.send_signal(signal.SIGUSR1)  # it writes where its threads are
            time.sleep(2)
            self.kill()
        elif self.process.returncode != 0 and self.killed_at is None:
            self.problems.append(f"the job ended with exit code {self.process.returncode}")

    def _say(self, words: bytes) -> None:
        """Say a last word to the job, and close the pipe."""
        if self.process.stdin is None or self.process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(words)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def await_orphans(self) -> None:
        """Wait for the children to end by themselves; those that do not are told of, and killed."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while found := self.find():
            if time.monotonic() > deadline:
                left = ", ".join(f"{one.role} {one.pid}" for one in found)
                self.problems.append(f"{left} still ran {END_TIMEOUT_S:g} s after the job; {self._look()}")
                for one in found:
                    one.send(signal.SIGKILL)
                deadline += END_TIMEOUT_S
            time.sleep(0.1)

    def _look(self) -> str:
        """What the processes hold."""
        for found in self.find():
            with contextlib.suppress(OSError):
                return "\n".join([f"arenas of {found.role} {found.pid}:", *arenas_of(found.pid)])
        return "nothing is left"

    def finish(self) -> None:
        """Everything of it has ended: read what it has left."""
        self.problems += self._lines("problems")
        said = self._lines("orphan_log")
        if self.killed_at is None:
            if said:
                self.problems.append(f"a job that was not killed has orphans: {said}")
            self._check_summary()
        elif len(said) != 1 or " 0 failed" not in said[0] or " lost" in said[0]:
            self.problems.append(f"the orphans of a killed job said: {said}")

    def _check_summary(self) -> None:
        if not self._file("summary").exists():
            self.problems.append("the job has left no summary")
            return
        said = json.loads(self._file("summary").read_text())
        if said != {"delivered": self.tally.accepted, "failed": 0}:
            self.problems.append(f"{self.tally.accepted} records were accepted, but the job said {said}")

    @property
    def orphans_said(self) -> str:
        """The orphans' own account."""
        return " ".join(self._lines("orphan_log"))

    def _lines(self, name: str) -> list[str]:
        file = self._file(name)
        return file.read_text().splitlines() if file.exists() else []
