"""The job that is tormented: ``python -m tests.crash.job FILE``, started by the rig, told to end on its stdin.

Four threads send through one Pipeline with a producer for each codec. What went wrong is appended to a file at once; a
job that ends by itself writes what it knows of its deliveries.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

from slabpress import DeliveryHandle, Pipeline, Producer, SlabpressError
from slabpress.pipeline import preparations
from slabpress.pipeline.child import Role
from tests.crash.processes import MORTAL
from tests.crash.records import BLOCK, CODECS, block_of, record_of, topic_of
from tests.crash.tally import Line, Tally

_STATS_EVERY_S: Final = 15.0
_PATIENCE_MS: Final = 300_000
# What differs from run to run; each run draws one of each.
_PIPELINE_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "request_timeout_ms": (3000, 8000, 30_000),
    "max_in_flight_requests_per_connection": (1, 5, 5),
    "metadata_max_age_ms": (2000, 300_000),
    "workers": (2, 2, 3),
}
_PRODUCER_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "buffer_memory": ("768KiB", "1MiB", "2MiB"),
    "linger_ms": (0, 5, 50),
    "batch_size": ("24KiB", "64KiB", "128KiB"),
}


class Reports:
    """What callbacks of one producer have said.

    Args:
        job: where failures go.
        codec: the producer's.
    """

    def __init__(self, job: Job, codec: int) -> None:
        self._job = job
        self._codec = codec
        self.delivered = 0
        self.failed = 0

    def __call__(self, handle: DeliveryHandle) -> None:
        error = handle.exception(0)
        if error is None:
            self.delivered += 1
            return
        self.failed += 1
        self._job.note(f"{topic_of(self._codec)}: {handle!r}: {error}")


class Job:
    """One run of the job.

    Args:
        spec: the run's number, the seed, and the files, as the rig wrote them.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._run: int = spec["run"]
        self._seed: int = spec["seed"]
        self._spec = spec
        self._problems = Path(spec["problems"])
        self._tally = Tally(Path(spec["tally"]))
        self._lock = threading.Lock()
        self._ending = threading.Event()

    def note(self, what: str) -> None:
        """Append a line to the file of what went wrong."""
        with self._lock, self._problems.open("a") as file:
            file.write(what.replace("\n", " | ") + "\n")

    def note_error(self, whose: str) -> None:
        """Note the exception that is being handled; all of it goes to the log."""
        text = traceback.format_exc()
        sys.stderr.write(text)
        self.note(f"{whose}: {text.splitlines()[-1]}")

    def work(self) -> None:
        """Send until the rig says end, then close and say what became of it."""
        rng = random.Random(f"{self._seed}/job/{self._run}")
        chosen = {name: rng.choice(choices) for name, choices in _PIPELINE_CHOICES.items()}
        sys.stderr.write(f"run {self._run}: {chosen}\n")
        reports = [Reports(self, codec) for codec in range(len(CODECS))]
        make_children_mortal()
        with Pipeline(self._spec["bootstrap"], orphan_log=self._spec["orphan_log"], **chosen) as pipeline:
            producers = [self._producer(pipeline, codec, rng, reports[codec]) for codec in range(len(CODECS))]
            threads = [
                threading.Thread(target=self._send_all, args=(producers, thread, line), name=f"sender-{thread}")
                for thread, line in enumerate(self._tally.lines)
            ]
            threads.append(threading.Thread(target=self._say_stats, args=(producers,), daemon=True))
            for thread in threads:
                thread.start()
            sys.stdin.readline()
            self._ending.set()
            for thread in threads:
                thread.join()
        said = {"delivered": sum(r.delivered for r in reports), "failed": sum(r.failed for r in reports)}
        Path(self._spec["summary"]).write_text(json.dumps(said))

    @staticmethod
    def _producer(pipeline: Pipeline, codec: int, rng: random.Random, reports: Reports) -> Producer:
        chosen = {name: rng.choice(choices) for name, choices in _PRODUCER_CHOICES.items()}
        sys.stderr.write(f"{CODECS[codec]}: {chosen}\n")
        return pipeline.producer(
            on_delivery=reports,
            acks="all",
            compression_type=CODECS[codec],
            max_request_size="128KiB",
            max_block_ms=_PATIENCE_MS,
            delivery_timeout_ms=_PATIENCE_MS,
            **chosen,
        )

    def _send_all(self, producers: list[Producer], thread: int, line: Line) -> None:
        block = 0
        while not self._ending.is_set():
            try:
                pause_s = self._send_block(producers, thread, line, block)
            except Exception:  # noqa: BLE001 - whatever it is, the rig is to hear of it
                self.note_error(f"thread {thread}")
                return
            block += 1
            self._ending.wait(pause_s)

    def _send_block(self, producers: list[Producer], thread: int, line: Line, block: int) -> float:
        codec, pause_s = block_of(self._seed, self._run, thread, block)
        first, after = max(1, block * BLOCK), (block + 1) * BLOCK
        records = [record_of(self._seed, self._run, thread, number) for number in range(first, after)]
        if codec is None:
            for number, record in enumerate(records, first):
                line.attempt(number)
                producers[record.codec].send(
                    topic_of(record.codec), record.value, key=record.key, headers=record.headers or None
                )
                line.accept(number)
        else:
            line.attempt(after - 1)
            producers[codec].send_many(
                topic_of(codec),
                [record.value for record in records],
                keys=[record.key for record in records],
                headers=[record.headers or None for record in records],
            )
            line.accept(after - 1)
        return pause_s

    def _say_stats(self, producers: list[Producer]) -> None:
        """Tell the log, now and then, where everything is."""
        while not self._ending.wait(_STATS_EVERY_S):
            for producer in producers:
                sys.stderr.write(
                    f"{time.strftime('%H:%M:%S')} {producer.config.compression_type}: {_figures(producer)}\n"
                )
            sys.stderr.flush()


def make_children_mortal() -> None:
    """Have children that kill themselves at named steps in place of slabpress's own (tests/crash/steps.py)."""

    def role(name: str, module: str, slot: int, settings: dict[str, Any]) -> Role:
        return Role(name, MORTAL[module], slot, settings)

    if "Role" not in vars(preparations):
        raise LookupError("slabpress.pipeline.preparations makes no roles any more: patch where they are made")
    vars(preparations)["Role"] = role


def _figures(producer: Producer) -> str:
    stats = producer.stats()
    figures = {
        "accepted": stats.records_accepted,
        "pending": stats.records_pending,
        "failed": stats.records_failed,
        "room_waits": stats.coordinator["room_waits"],
        **{name: stats.network[name] for name in ("retries", "reconnects", "splits", "epochs_begun")},
        **{state: count for state, count in stats.batches.items() if state != "free"},
    }
    return ", ".join(f"{count} {name}" for name, count in figures.items() if count)


def main() -> int:
    """Run the job that the file describes."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    job = Job(json.loads(Path(sys.argv[1]).read_text()))
    try:
        job.work()
    except SlabpressError:
        job.note_error("the job")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
