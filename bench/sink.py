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
import sys
import time
from typing import Any

from bench.sink_books import Taken
from bench.sink_messages import HOST
from bench.sink_server import Server
from tests.support.ordered import Ordered


class SinkError(RuntimeError):
    """The sink refused an order or has died."""


class Sink(Ordered):
    """A sink in a process of its own.

    Attributes:
        bootstrap_servers: its one broker.
    """

    what = "the sink"
    error = SinkError

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "bench.sink"])
        self.bootstrap_servers: str = self.ready

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic; one of the same name begins anew."""
        self.order(("create_topic", name, partitions))

    def taken(self, name: str) -> Taken:
        """What was acknowledged of a topic."""
        records, octets, batches, codecs = self.order(("taken", name))
        return Taken(records, octets, batches, {int(codec): count for codec, count in codecs.items()})

    def cpu_seconds(self) -> float:
        """What the sink has cost so far."""
        return float(self.order(("cpu_seconds",)))


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
