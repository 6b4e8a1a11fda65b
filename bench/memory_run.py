"""One run of the memory experiment: a side in a process of its own, acknowledgements that stall, memory sampled."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import psutil

from bench import memory_java
from bench.memory_messages import Job
from slabpress.observe.memory import process_bytes
from tests.support.kafka_install import spawn
from tests.support.proxy import Proxy

SAMPLE_EVERY_S = 0.1
TRICKLE_BYTES_PER_S = 400.0
STOPPED_BYTES_PER_S = 0.5  # of a connection: a response of 60 bytes would take two minutes
START_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 90.0
KILL_ABOVE_BYTES = 6 << 30
ORDER_TIMEOUT_S = 10.0


class Phases(NamedTuple):
    """Seconds of each phase: acknowledgements free, at a trickle, stopped."""

    free_s: float
    trickle_s: float
    stopped_s: float


class Died(Exception):  # noqa: N818 - it is what happened to a side, not an error of the experiment
    """A side ended or was killed before it was done."""


class Sample(NamedTuple):
    """What a side took and had done at one time, in seconds since it began to make its producers."""

    at_s: float
    memory_bytes: int
    accepted: int
    acked: int
    failed: int


class Run:
    """A side while it runs.

    Attributes:
        base_bytes: its memory before it made its first producer.
        samples: one every 100 ms.
        marks: when each phase began, in the samples' time.
        said: the last line of each kind of event.
    """

    def __init__(self, job: Job, proxy: Proxy, errors: IO[bytes]) -> None:
        self.base_bytes = 0
        self.samples: list[Sample] = []
        self.marks: dict[str, float] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self._proxy = proxy
        self._events: queue.Queue[str] = queue.Queue()
        self._is_java = job.side in memory_java.RELEASES
        python = [sys.executable, "-m", "bench.memory_side", json.dumps(job._asdict())]
        argv = memory_java.command(job) if self._is_java else python
        self._process = spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self._orders = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._start = time.monotonic()

    def execute(self, phases: Phases) -> None:
        """Go through all phases.

        Raises:
            Died: the side did not reach the end; it says why.
        """
        self._throttle(0.0)
        self._await("ready", START_TIMEOUT_S)
        self.base_bytes = self._memory()
        self._start = time.monotonic()
        self._order("go")
        self._sample_until(START_TIMEOUT_S, lambda: self.count("acked") > 0)
        self._phase("free", phases.free_s, 0.0)
        self._phase("trickle", phases.trickle_s, TRICKLE_BYTES_PER_S)
        self._phase("stopped", phases.stopped_s, -1.0)
        if self._is_java:
            self._order("collect")
            self._await("heap", ORDER_TIMEOUT_S)
        self.marks["released"] = self._now()
        self._throttle(0.0)
        self._order("stop")
        self._sample_until(DRAIN_TIMEOUT_S, lambda: "end" in self.said)
        self.marks["end"] = self._now()

    def close(self) -> None:
        """End whatever still runs of the side."""
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(tree, ORDER_TIMEOUT_S)
        self._reader.join(ORDER_TIMEOUT_S)
        for pipe in (self._orders, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _read(self) -> None:
        for raw in self._answers:
            with contextlib.suppress(ValueError):
                line = json.loads(raw)
                self.said[line["event"]] = line
                self._events.put(line["event"])
        self._events.put("")

    def _await(self, event: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Died(f"no {event} within {timeout_s:g} s") from None
            if found == event:
                return
            if not found:
                raise Died(self._ending())

    def _ending(self) -> str:
        code = self._process.wait(ORDER_TIMEOUT_S)
        if self._is_java and code == 3:
            return "OutOfMemoryError"
        return f"exit code {code}"

    def _order(self, word: str) -> None:
        with contextlib.suppress(OSError):
            self._orders.write(f"{word}\n".encode())
            self._orders.flush()

    def _phase(self, name: str, seconds: float, bytes_per_s: float) -> None:
        self.marks[name] = self._now()
        deadline = time.monotonic() + seconds
        self._throttle(bytes_per_s)
        while time.monotonic() < deadline:
            self._sample()
            self._throttle(bytes_per_s)
            time.sleep(SAMPLE_EVERY_S)

    def _sample_until(self, timeout_s: float, condition: Any) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise Died(f"not done within {timeout_s:g} s")
            self._sample()
            time.sleep(SAMPLE_EVERY_S)

    def _throttle(self, bytes_per_s: float) -> None:
        """Slow the acknowledgements: a rate for all connections together, 0 for none, less than 0 for stopped."""
        share = bytes_per_s / max(1, self._proxy.open_connections)
        self._proxy.down.bytes_per_s = share if bytes_per_s >= 0 else STOPPED_BYTES_PER_S

    def count(self, name: str) -> int:
        """The last that the side said of accepted, acked or failed records."""
        return int(self.said.get("end", self.said.get("counts", {})).get(name, 0))

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []

    def _memory(self) -> int:
        """Memory of the side's processes; what they share is counted once, as the side states it."""
        shared = int(self.said.get("started", {}).get("shared", 0))
        own = sum(process_bytes(process.pid) for process in self._tree())
        return own + shared if own else 0

    def _sample(self) -> None:
        if "end" not in self.said and self._process.poll() is not None:
            raise Died(self._ending())
        memory = self._memory()
        counts = [self.count(name) for name in ("accepted", "acked", "failed")]
        self.samples.append(Sample(round(self._now(), 3), memory, *counts))
        if memory > KILL_ABOVE_BYTES:
            raise Died(f"killed above {KILL_ABOVE_BYTES >> 30} GiB")


@contextlib.contextmanager
def running(job: Job, proxy: Proxy) -> Iterator[tuple[Run, IO[bytes]]]:
    """A side's process and the file of its stderr; both are gone afterwards."""
    with tempfile.TemporaryFile() as errors:
        run = Run(job, proxy, errors)
        try:
            yield run, errors
        finally:
            proxy.down.bytes_per_s = 0.0
            run.close()


def measure(job: Job, proxy: Proxy, phases: Phases) -> dict[str, Any]:
    """Run one side once and say what happened, as plain data."""
    died = ""
    with running(job, proxy) as (run, errors):
        try:
            run.execute(phases)
        except Died as reason:
            died = str(reason)
            errors.seek(0)
            sys.stderr.write(errors.read()[-1500:].decode(errors="replace"))
        started, end = run.said.get("started", {}), run.said.get("end", {})
        return {
            "side": job.side,
            "codec": job.codec,
            "settings": started.get("settings") or memory_java.settings(job),
            "planned_bytes": started.get("planned", 0),
            "base_bytes": run.base_bytes,
            "heap_at_start_bytes": run.said.get("ready", {}).get("heap", 0),
            "heap_at_stall_bytes": run.said.get("heap", {}).get("heap", 0),
            "died": died,
            "error": end.get("error", ""),
            "finished": "end" in run.said,
            "counts": {name: run.count(name) for name in ("accepted", "acked", "failed")},
            "marks": run.marks,
            "samples": [list(sample) for sample in run.samples],
        }


def write_messages(folder: str, messages: list[bytes]) -> str:
    """Put the messages where every side can read them."""
    path = Path(folder) / "messages"
    path.write_bytes(b"".join(messages))
    return str(path)
