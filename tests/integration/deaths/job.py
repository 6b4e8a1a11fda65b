"""The job that is killed: ``python -m tests.integration.deaths.job SPEC``, SPEC being one JSON object.

    bootstrap_servers, topic, settings    the producer's
    tally         the file in which each thread keeps how many records it has sent (tests/crash/tally.py)
    partitions    records go round these
    threads       how many threads send; t0, t1, ... are the senders' names
    records       how many records each of them sends; null: until it is told to end
    filling       bytes that each record is longer
    pause_s       each thread waits so long after each record
    end           how it ends when it is told to, after its records: "close", "exit" (os._exit(3)), or "leave": main()
                  returns, and the interpreter's end is to close the producer
    with          the producer is in a with block
    sigterm       SIGTERM raises SystemExit(4)

It says one JSON object a line: its pid with what it has sent first, then, with ``records``, the producer's figures when
all are sent. It goes on with each line that it hears.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from slabpress import Producer
from tests.crash.tally import Line, Tally
from tests.integration.deaths.records import text_of, value_of


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Senders:
    """The threads that send.

    Args:
        producer: what they send with.
        spec: what the job was told.
    """

    def __init__(self, producer: Producer, spec: dict[str, Any]) -> None:
        self._producer = producer
        self._topic: str = spec["topic"]
        self._partitions: int = spec.get("partitions", 1)
        self._pause_s: float = spec.get("pause_s", 0.0)
        self._records: int | None = spec.get("records")
        self._filling: int = spec.get("filling", 0)
        self._stopping = False
        lines = Tally(Path(spec["tally"])).lines[: spec.get("threads", 1)]
        # Daemons: a job that "ends" by an exception in its main thread is not to wait for them.
        self._threads = [
            threading.Thread(target=self._send, args=(f"t{place}", line), daemon=True)
            for place, line in enumerate(lines)
        ]
        self._send_one("t0", lines[0], 0)
        producer.flush()

    def _send(self, name: str, line: Line) -> None:
        number = line.claim.accepted
        while number != self._records and not self._stopping:
            self._send_one(name, line, number)
            number += 1
            if self._pause_s:
                time.sleep(self._pause_s)

    def _send_one(self, name: str, line: Line, number: int) -> None:
        partition = number % self._partitions
        line.attempt(number + 1)
        value = value_of(name, partition, number, text_of(number, self._filling))
        self._producer.send(self._topic, value, partition=partition)
        line.accept(number + 1)

    def work(self) -> None:
        """Send until all is sent, or until told to end."""
        for thread in self._threads:
            thread.start()
        if self._records is None:
            sys.stdin.readline()
            self._stopping = True
        for thread in self._threads:
            thread.join()


def leave(*_: object) -> None:
    sys.exit(4)


def main() -> int:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    if spec.get("sigterm"):
        signal.signal(signal.SIGTERM, leave)
    producer = Producer(spec["bootstrap_servers"], **spec["settings"])
    with producer if spec.get("with") else contextlib.nullcontext():
        senders = Senders(producer, spec)
        say(pid=os.getpid())
        sys.stdin.readline()
        senders.work()
        if spec.get("records") is not None:
            say(**producer.stats().batches)
            sys.stdin.readline()
    if spec.get("end") == "exit":
        os._exit(3)
    if spec.get("end", "close") == "close":
        producer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
