"""What the processes of a pipeline map, hold and take, seen from outside; and producers that go on all the while."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from slabpress import BootstrapError, BufferFullError, Pipeline, Producer, UnknownTopicError
from slabpress.pipeline.supervisor import Supervisor
from tests.support.kafka import Record, read_back
from tests.support.kafka_install import wait_until

WATCHDOG_S: Final = 60.0
_ARENA: Final = "memfd:slabpress-arena"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state that other processes bring about."""
    wait_until(condition, what, WATCHDOG_S, every_s=0.005)


def supervisor_of(pipeline: Pipeline) -> Supervisor:
    """Who looks after its children."""
    return pipeline._coordinator._supervisor


def processes(pipeline: Pipeline) -> dict[str, int]:
    """Its children's process ids, by their names."""
    return dict(supervisor_of(pipeline).processes())


def arena_of(producer: Producer) -> int:
    """The inode of an open producer's arena."""
    return os.fstat(producer._session.arena.descriptor).st_ino


def mapped(pid: int) -> set[int]:
    """The inodes of the arenas that a process has mapped; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(line.split()[4]) for line in lines if _ARENA in line}


def _open(pid: int) -> Iterator[tuple[Path, str]]:
    """The descriptors of a process, with what each of them is; none if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one that a listing of this very process uses
                yield link, str(link.readlink())


def descriptors(pid: int) -> list[str]:
    """What a process holds open, as /proc names it, sorted."""
    return sorted(name for _, name in _open(pid))


def held(pid: int) -> set[int]:
    """The inodes of the arenas that a process holds a descriptor of."""
    return {link.stat().st_ino for link, name in _open(pid) if _ARENA in name}


def holders(pipeline: Pipeline, arena: int) -> list[str]:
    """The processes that map an arena or hold a descriptor of it, this one included as "job"."""
    pids = {"job": os.getpid()} | processes(pipeline)
    return [name for name, pid in pids.items() if arena in mapped(pid) | held(pid)]


def served(pipeline: Pipeline, arenas: set[int]) -> bool:
    """Whether every child has exactly these arenas mapped."""
    return all(mapped(pid) == arenas for pid in processes(pipeline).values())


def own_bytes(pid: int) -> int:
    """The memory that a process has allocated for itself.

    The other part of its PSS, the program's files, is shared out among all that run here and changes with them.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss_Anon: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for a while, as in a debugger or on a machine that swaps."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # the test has killed it
                signal.pidfd_send_signal(process, signal.SIGCONT)
    finally:
        os.close(process)


def begin(producer: Producer, topic: str) -> None:
    """Send a first record and see it delivered, however short the producer's max_block_ms is."""

    def sent() -> bool:
        try:
            producer.send(topic, b"first 0", partition=0).result(WATCHDOG_S)
        except (BootstrapError, UnknownTopicError):
            return False
        return True

    until(sent, f"{topic} to be known")


def fill(producer: Producer, topic: str, value: bytes, partitions: int = 1) -> int:
    """Send until the producer's memory is full; how many records that took. ``begin`` first, with max_block_ms=0."""
    for number in itertools.count():
        try:
            producer.send(topic, value, partition=number % partitions)
        except BufferFullError:
            return number
    raise AssertionError


class Sender:
    """A producer that is sent numbered records by a thread, until it is told to stop or has sent ``count``.

    Args:
        producer: the producer.
        topic: where to; it goes round ``partitions``.
        name: of the sender; the records are ``name number filling``.
        count: how many records, None for no end.
        filling: bytes that each record is longer.
        window: so many records are delivered before the next is sent, None for no limit.

    Attributes:
        sent: how many records it has sent.
    """

    def __init__(
        self, producer: Producer, topic: str, name: str, *, partitions: int = 4, count: int | None = None,
        filling: bytes = b"", window: int | None = None,
    ) -> None:  # fmt: skip
        self.producer = producer
        self.name = name
        self.sent = 0
        self._topic = topic
        self._partitions = partitions
        self._count = count
        self._filling = b" " + filling
        self._window = window
        self._failure: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"sender {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping and self.sent != self._count:
                value = b"%s %d" % (self.name.encode(), self.sent) + self._filling
                self.producer.send(self._topic, value, partition=self.sent % self._partitions)
                self.sent += 1
                if self._window and self.sent % self._window == 0:
                    self.producer.flush(WATCHDOG_S)
        except BaseException as failure:  # noqa: BLE001 - raised by end()
            self._failure = failure

    def goes_on(self, records: int = 50) -> None:
        """Wait until so many more records have been sent."""
        goal = self.sent + records
        until(lambda: self.sent >= goal or not self._thread.is_alive(), f"{self.name} to go on")
        assert self._failure is None, self._failure

    def end(self) -> None:
        """Stop; everything that was sent must have been delivered."""
        self._stopping = True
        self.wait()

    def wait(self) -> None:
        """Wait for the end; everything that was sent must have been delivered."""
        self._thread.join(WATCHDOG_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure
        self.producer.flush(WATCHDOG_S)  # raises what was not delivered
        figures = self.producer.stats()
        assert (figures.records_accepted, figures.records_delivered) == (self.sent, self.sent)


def numbers_by_sender(records: Iterator[Record]) -> dict[str, dict[int, list[int]]]:
    """The numbers of senders' records as they lie in the log: of each sender, by partition."""
    found: dict[str, dict[int, list[int]]] = {}
    for record in records:
        assert record.value is not None
        name, number = record.value.split()[:2]
        found.setdefault(name.decode(), {}).setdefault(record.partition, []).append(int(number))
    return found


def read_numbers(bootstrap_servers: str, topic: str) -> dict[str, dict[int, list[int]]]:
    """``numbers_by_sender`` of a whole topic."""
    return numbers_by_sender(read_back(bootstrap_servers, topic, timeout_s=WATCHDOG_S))
