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
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

import psutil

from bench import memory_java
from bench.memory_messages import MESSAGE_BYTES, Job
from bench.memory_pss import process_tree, tree_memory
from tests.support.kafka_install import spawn
from tests.support.proxy import Proxy

SAMPLE_EVERY_S = 0.1
TRICKLE_BYTES_PER_S = 400.0
# After the stop phase comes what must not be in it, such as Java's collection.
STOP_REST_S = 2.0
START_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 120.0
ORDER_TIMEOUT_S = 10.0
STDERR_BYTES = 1500


class Phases(NamedTuple):
    """Seconds of each phase: acknowledgements free, at a trickle, stopped."""

    free_s: float
    trickle_s: float
    stopped_s: float


class Died(Exception):  # noqa: N818 - it is what happened to a side, not an error of the experiment
    """A side ended or was killed before it was done."""


class Sample(NamedTuple):
    """What a side took and had done at one time, in seconds since it began to make its producers.

    Memory is as in memory_pss.Memory; bytes are those of values, the rest are records.
    """

    at_s: float
    memory_bytes: int
    pss_bytes: int
    data_bytes: int
    accepted_bytes: int
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
        self._job = job
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
        self._start = self._next_sample = time.monotonic()

    def execute(self, phases: Phases) -> None:
        """Go through all phases.

        Raises:
            Died: the side did not reach the end; it says why.
        """
        self._free()
        self._await("ready", START_TIMEOUT_S)
        self.base_bytes = tree_memory(self._process.pid).total_bytes
        self._start = self._next_sample = time.monotonic()
        self._order("go")
        self._sample_until(START_TIMEOUT_S, lambda: self.count("acked") > 0)
        self._phase("free", phases.free_s, lambda _: self._free())
        self._phase("trickle", phases.trickle_s, lambda _: self._trickle())
        self._phase("stopped", phases.stopped_s, self._stop)
        if self._is_java:
            self._order("collect")
            self._await("heap", ORDER_TIMEOUT_S)
        self.marks["released"] = self._now()
        self._free()
        self._order("stop")
        self._sample_until(DRAIN_TIMEOUT_S, lambda: "end" in self.said)
        self.marks["end"] = self._now()

    def close(self) -> None:
        """End whatever still runs of the side."""
        tree = process_tree(self._process.pid)
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

    def latest(self) -> dict[str, Any]:
        """The last counts that the side said, and what it said beside them."""
        return self.said.get("end", self.said.get("counts", {}))

    def count(self, name: str) -> int:
        """The last that the side said of accepted, acked or failed records."""
        return int(self.latest().get(name, 0))

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
        if self._is_java and code == memory_java.OUT_OF_MEMORY:
            return "OutOfMemoryError"
        return f"exit code {code}"

    def _order(self, word: str) -> None:
        with contextlib.suppress(OSError):
            self._orders.write(f"{word}\n".encode())
            self._orders.flush()

    def _phase(self, name: str, seconds: float, acknowledge: Callable[[float], None]) -> None:
        """Sample for some seconds; ``acknowledge`` is told at every sample how many are left."""
        self.marks[name] = self._now()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            acknowledge(left)
            self._sample()

    def _sample_until(self, timeout_s: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise Died(f"not done within {timeout_s:g} s")
            self._sample()

    def _free(self) -> None:
        self._proxy.down.bytes_per_s = 0.0

    def _trickle(self) -> None:
        """So much for all connections together."""
        self._proxy.down.bytes_per_s = TRICKLE_BYTES_PER_S / max(1, self._proxy.open_connections)

    def _stop(self, left_s: float) -> None:
        """Let at most one byte of each connection through until the phase is over."""
        self._proxy.down.bytes_per_s = 1 / (left_s + STOP_REST_S)

    def _sample(self) -> None:
        """Take one sample, when its time has come."""
        time.sleep(max(0.0, self._next_sample - time.monotonic()))
        self._next_sample = max(self._next_sample + SAMPLE_EVERY_S, time.monotonic())
        if "end" not in self.said and self._process.poll() is not None:
            raise Died(self._ending())
        memory = tree_memory(self._process.pid)
        accepted = self.count("accepted") * MESSAGE_BYTES
        self.samples.append(Sample(round(self._now(), 3), *memory, accepted, self.count("acked"), self.count("failed")))
        if memory.total_bytes > self._job.cap_bytes:
            raise Died(f"killed at {self._job.cap_bytes >> 20} MiB")
        if self.latest().get("violations"):
            raise Died("VIOLATION of conservation")


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
    began = time.monotonic()
    with running(job, proxy) as (run, errors):
        try:
            run.execute(phases)
        except Died as reason:
            died = str(reason)
            errors.seek(0)
            sys.stderr.write(errors.read()[-STDERR_BYTES:].decode(errors="replace"))
    latest = run.latest()
    return {
        "side": job.side,
        "codec": job.codec,
        "settings": run.said.get("started", {}).get("settings") or memory_java.settings(job),
        "base_bytes": run.base_bytes,
        "planned_bytes": latest.get("planned", 0),
        "conservation_checks": latest.get("checks", 0),
        "violations": latest.get("violations", []),
        "heap_at_stall_bytes": run.said.get("heap", {}).get("heap", 0),
        "died": died,
        "error": latest.get("error", ""),
        "counts": {name: run.count(name) for name in ("accepted", "acked", "failed")},
        "accepted_each": latest.get("each", []),
        "seconds": round(time.monotonic() - began, 1),
        "marks": run.marks,
        "samples": [list(sample) for sample in run.samples],
    }
