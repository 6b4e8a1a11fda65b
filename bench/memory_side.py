"""One Python side of the memory experiment, in a process of its own: ``python -m bench.memory_side JSON``.

It prints JSON lines: "ready" before it makes the first producer, on "go" from stdin "started" with its settings,
every 100 ms "counts", and "end" when, after "stop", all that it accepted is resolved.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.memory_clients import CLIENTS
from bench.memory_messages import Job, split_messages
from bench.memory_tally import Tally

REPORT_EVERY_S = 0.1

_saying = threading.Lock()


def say(event: str, **fields: Any) -> None:
    """Print one line."""
    with _saying:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run the job in ``argv[1]``."""
    job = Job(**json.loads(sys.argv[1]))
    messages = split_messages(Path(job.messages).read_bytes())
    stopping, over = threading.Event(), threading.Event()
    say("ready")
    sys.stdin.readline()
    tally = Tally(job.producers)
    client = CLIENTS[job.side](job, tally)
    say("started", settings=client.settings)

    def obey() -> None:
        # An end without an order is the parent's death: then there is nobody to report to either.
        sys.stdin.readline()
        stopping.set()

    def report() -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            say("counts", **tally.counts(), **client.observe())
            due = max(due + REPORT_EVERY_S, time.monotonic())

    threading.Thread(target=obey, daemon=True).start()
    reporter = threading.Thread(target=report)
    reporter.start()
    try:
        client.run(messages, stopping)
    finally:
        over.set()
        reporter.join()
    say("end", **tally.counts(), **client.observe(), each=tally.accepted, error=tally.error)


if __name__ == "__main__":
    main()
