"""What the Python sides of the memory experiment share: a thread a producer, and the counts."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.memory_messages import first_message, stamped


class Client(abc.ABC):
    """A client that sends until it is told to stop and then delivers what it accepted."""

    settings: dict[str, Any]

    @abc.abstractmethod
    def run(self, messages: list[bytes], stopping: threading.Event) -> None:
        """Send the messages over and over until ``stopping``, then flush and close."""

    def observe(self) -> dict[str, Any]:
        """What is to be said beside the counts, ten times a second."""
        return {}


class Tally:
    """Counts, one a producer, so that each has one writer."""

    def __init__(self, producers: int) -> None:
        self.accepted = [0] * producers
        self.acked = [0] * producers
        self.failed = [0] * producers
        self.error = ""

    def resolve(self, index: int, error: object) -> None:
        """Count one record that was acknowledged, or failed."""
        if error is None:
            self.acked[index] += 1
        else:
            self.failed[index] += 1
            self.error = repr(error)

    def counts(self) -> dict[str, int]:
        """The sums over all producers."""
        return {"accepted": sum(self.accepted), "acked": sum(self.acked), "failed": sum(self.failed)}


class Drive(NamedTuple):
    """One thread's part: called until stopping with the place of its producer."""

    send: Callable[[int, bytes], bool]
    finish: Callable[[int], object]


def run_threads(drive: Drive, tally: Tally, messages: list[bytes], stopping: threading.Event) -> None:
    """One thread a producer, each as fast as it can."""
    count = len(tally.accepted)

    def work(index: int) -> None:
        at = first_message(index, count)
        try:
            while not stopping.is_set():
                if drive.send(index, stamped(index, tally.accepted[index], messages[at])):
                    tally.accepted[index] += 1
                    at = (at + 1) % len(messages)
            drive.finish(index)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is a result
            tally.error = repr(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
