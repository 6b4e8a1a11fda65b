"""Jobs, and what their processes take, looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.support.kafka_install import spawn, wait_until

WATCHDOG_S: Final = 90.0
SAMPLE_S: Final = 0.08
JOB: Final = "coordinator"

State = dict[str, Any]


class Taken(NamedTuple):
    """Bytes of a process, shared memory such as the arena left out.

    Attributes:
        pss: as ``slabpress.observe.memory.process_bytes`` says it.
        anonymous: what it has allocated for itself.
        files: the programs and libraries that it has mapped and in memory, whoever else shares them.
        page_tables: the kernel's tables for it.
    """

    pss: int
    anonymous: int
    files: int
    page_tables: int

    def alone(self, family: int) -> int:
        """The PSS that it would have if nobody but these processes ran here.

        Whoever else runs the same interpreter makes PSS smaller, and nobody can plan for that.
        """
        return max(self.pss, self.anonymous + self.files // family)


def taken(pid: int) -> Taken | None:
    """What a process takes now; None if it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup}
    kilobytes |= {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("RssFile", "VmPTE"))}
    if not {"Pss_Shmem", "RssFile", "VmPTE"} <= kilobytes.keys():
        return None  # it has ended and was not waited for
    own = kilobytes["Pss"] - kilobytes["Pss_Shmem"]
    return Taken(*(1024 * part for part in (own, kilobytes["Anonymous"], kilobytes["RssFile"], kilobytes["VmPTE"])))


class RunningJob:
    """A job in a process of its own, see job.py; it does not outlive the block.

    Args:
        load: what it is to do, None for nothing.
        order: what the load asks for.
    """

    def __init__(self, load: str | None, **order: object) -> None:
        text = json.dumps({"load": load, "settings": {}, "large_bytes": 0} | order)
        argv = [sys.executable, "-W", "default", str(Path(__file__).with_name("job.py")), text]
        pipe = subprocess.PIPE
        self.process = spawn(argv, stdin=pipe, stdout=pipe, stderr=pipe)
        self.pids = {JOB: self.process.pid}
        self._text = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.process:  # closes its pipes and waits for it
            self.process.kill()

    def reads(self, *expected: str) -> State:
        """The next that it tells, which must be one of these."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._text:
            ready, _, _ = select.select([pipe], [], [], WATCHDOG_S)
            if not ready:
                raise TimeoutError(f"the job has told nothing for {WATCHDOG_S:g} s")
            data = os.read(pipe, 65536)
            if not data:
                raise AssertionError(f"the job ended: {self._end()}")
            self._text += data
        line, self._text = self._text.split(b"\n", 1)
        state: State = json.loads(line)
        assert state["at"] in expected, state
        return state

    def started(self) -> State:
        """What it tells once its producers are there."""
        state = self.reads("started")
        self.pids |= state["pids"]
        return state

    def go(self) -> None:
        """Let it go on."""
        self._say("go\n")

    def finish(self) -> None:
        """Let it end, which it must do well."""
        self._say("end\n")
        assert self._end() == (0, "")

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the next look says how
            self.process.stdin.write(word.encode())
            self.process.stdin.flush()

    def _end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=WATCHDOG_S)
        return self.process.returncode, errors.decode()


class Sampler:
    """Looks at the processes of a job again and again, in a thread, and keeps the most that each has taken.

    Attributes:
        most: of each process by its name, the most of each figure.
        samples: how many looks there were.
    """

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")
        self.most: dict[str, Taken] = {}
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.look()

    def look(self) -> None:
        """Look once."""
        for name, pid in list(self._job.pids.items()):
            now = taken(pid)
            if now is not None:
                self.most[name] = Taken(*map(max, now, self.most.get(name, now)))
        self.samples += 1

    def looks(self, more: int) -> None:
        """Wait until there were so many looks more."""
        goal = self.samples + more
        wait_until(lambda: self.samples >= goal, f"{more} looks", WATCHDOG_S)
