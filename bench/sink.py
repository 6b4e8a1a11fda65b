"""A broker stand-in that acknowledges at once and costs as little as can be: the producers are what is measured.

It lives in a process of its own. It speaks ApiVersions, Metadata and InitProducerId, through kio, and Produce 3 to 8:
what every client here sends with, idempotent or not, and what can be read without decoding (bench/sink_messages.py
says what is offered and why; bench/sink_server.py how records are dropped in the kernel). It keeps nothing but counts,
by which a benchmark sees that a side sent all its records: of records as the batches' headers say, of bytes and
batches.

It is no test of a client: it checks neither CRCs nor sequences, has one broker, never fails and never throttles. A
topic that was not created does not exist.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from typing import Any, Self

from bench.sink_books import Taken
from bench.sink_messages import HOST
from bench.sink_server import Server
from tests.support.kafka_install import spawn

ANSWER_TIMEOUT_S = 20.0


class SinkError(RuntimeError):
    """The sink refused an order or has died."""


class Sink:
    """A sink in a process of its own.

    Attributes:
        bootstrap_servers: its one broker.
    """

    def __init__(self) -> None:
        self._process = spawn([sys.executable, "-m", "bench.sink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.bootstrap_servers: str = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The sink's process."""
        return self._process.pid

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic; one of the same name begins anew."""
        self._order("create_topic", name, partitions)

    def taken(self, name: str) -> Taken:
        """What was acknowledged of a topic."""
        records, octets, batches, codecs = self._order("taken", name)
        return Taken(records, octets, batches, {int(codec): count for codec, count in codecs.items()})

    def cpu_seconds(self) -> float:
        """What the sink has cost so far."""
        return float(self._order("cpu_seconds"))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.terminate()
        self._process.wait()

    def _order(self, *words: str | int) -> Any:
        assert self._process.stdin is not None  # noqa: S101 - told to be a pipe
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - told to be a pipe
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        if not ready:
            raise SinkError(f"the sink gave no answer within {ANSWER_TIMEOUT_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise SinkError(answer["error"])
        return answer["ok"]

    def _died(self) -> SinkError:
        return SinkError(f"the sink has ended, exit code {self._process.wait()}")


def _obey(server: Server, order: str, *words: Any) -> object:
    if order == "create_topic":
        server.books.create(*words)
        return None
    if order == "taken":
        try:
            return server.books.taken(*words)
        except KeyError:
            raise SinkError(f"the sink has no topic {words[0]!r}: create_topic() makes one") from None
    return time.process_time()


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve clients, and orders from stdin until it ends."""
    server = Server()
    server.start()
    _say({"ok": f"{HOST}:{server.port}"})
    for line in sys.stdin:
        try:
            _say({"ok": _obey(server, *json.loads(line))})
        except SinkError as error:
            _say({"error": str(error)})


if __name__ == "__main__":
    main()
