"""An outage with a full arena: ``python -m tests.integration.deaths.outage --seconds 60``.

A broker that is sent to all the time is frozen for so long, until every byte of the arena waits, and then goes on. What
became of the records is counted by an independent consumer; how fast the producer was before and after is told.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Final, NamedTuple

from slabpress import Producer
from tests.integration.deaths.records import Counts, read_and_count, value_of
from tests.support.kafka import KafkaCluster

STEP_S: Final = 0.5
BEFORE_S: Final = 4.0
AFTER_S: Final = 5.0
# How much of the rate before the outage counts as being back.
BACK: Final = 0.8
# Where it does not come back at all, the measurement ends.
_PATIENCE_S: Final = 60.0
_READ_TIMEOUT_S: Final = 600.0
_PARTITIONS: Final = 2
_FILLING: Final = b"x" * 480


class Outcome(NamedTuple):
    """What an outage has done.

    Attributes:
        seconds: how long it was.
        counts: of all records that send() has accepted.
        waiting: those that were accepted and not acknowledged at its end.
        sent_while_full: those that were accepted in its last half: none, as nothing is freed.
        before: records delivered a second, before it.
        after: the same in each half second after the broker's resume.
        back_s: the end of the first of them with 80% of the rate before; None if there is none.
    """

    seconds: float
    counts: Counts
    waiting: int
    sent_while_full: int
    before: float
    after: list[float]
    back_s: float | None

    def words(self) -> str:
        """All of it, for people."""
        back = "never" if self.back_s is None else f"{self.back_s:.1f} s after the resume"
        return "\n".join(
            [
                f"outage                {self.seconds:g} s",
                f"records               {self.counts.records}",
                f"lost                  {self.counts.lost}",
                f"doubled               {self.counts.doubled}",
                f"reordered             {self.counts.reordered}",
                f"waiting at its end    {self.waiting}, the arena being full",
                f"rate before           {self.before:,.0f} records/s",
                f"rate after, by {STEP_S} s  {', '.join(f'{rate:,.0f}' for rate in self.after)}",
                f"back at {BACK:.0%}           {back}",
            ]
        )


class Flood:
    """Records sent by a thread as fast as they go in, or with a pause after each.

    Attributes:
        sent: how many were accepted.
    """

    def __init__(self, producer: Producer, topic: str, pause_s: float) -> None:
        self.sent = 0
        self._pause_s = pause_s
        self._producer = producer
        self._topic = topic
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                partition = self.sent % _PARTITIONS
                value = value_of("flood", partition, self.sent, _FILLING)
                self._producer.send(self._topic, value, partition=partition)
                self.sent += 1
                if self._pause_s:
                    time.sleep(self._pause_s)
        except BaseException as failure:  # noqa: BLE001 - raised by end()
            self._failure = failure

    def end(self) -> None:
        """Stop sending, and wait until everything is delivered."""
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._producer.flush()

    def rates(self, seconds: float) -> list[float]:
        """How many records are delivered a second, in each step of so many seconds."""
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            found.append(self._rate())
        return found

    def _rate(self) -> float:
        started, delivered = time.monotonic(), self._producer.stats().records_delivered
        time.sleep(STEP_S)
        return (self._producer.stats().records_delivered - delivered) / (time.monotonic() - started)


def suffer(
    kafka: KafkaCluster,
    topic: str,
    seconds: float,
    *,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
    pause_s: float = 0.0,
) -> Outcome:
    """Send through an outage of so many seconds.

    Args:
        kafka: one broker.
        topic: a new topic.
        seconds: how long the outage is.
        before_s: how long the rate is measured before it.
        after_s: the same after it.
        pause_s: between two records.
    """
    kafka.create_topic(topic, _PARTITIONS)
    patience_ms = int((seconds + 2 * _PATIENCE_S) * 1000)
    with Producer(
        kafka.bootstrap_servers,
        buffer_memory="8MiB",
        workers=1,
        max_block_ms=patience_ms,
        delivery_timeout_ms=patience_ms,
    ) as producer:
        flood = Flood(producer, topic, pause_s)
        flood.rates(STEP_S)  # the topic is looked up, the broker warms up
        before = flood.rates(before_s)
        kafka.pause(1)
        try:
            time.sleep(seconds / 2)
            half = flood.sent
            time.sleep(seconds / 2)
            waiting = producer.stats().records_pending
            sent_while_full = flood.sent - half
        finally:
            kafka.resume(1)
        rate = sum(before) / len(before)
        after = _until_back(flood, rate, after_s)
        flood.end()
        accepted = {"flood": flood.sent}
    back = next((place for place, one in enumerate(after, 1) if one >= BACK * rate), None)
    return Outcome(
        seconds,
        read_and_count(kafka, topic, accepted, timeout_s=_READ_TIMEOUT_S),
        waiting,
        sent_while_full,
        rate,
        after,
        None if back is None else back * STEP_S,
    )


def _until_back(flood: Flood, rate: float, after_s: float) -> list[float]:
    """The rates after the outage, for as long as they are told of, or until one is high enough."""
    after = flood.rates(after_s)
    deadline = time.monotonic() + _PATIENCE_S
    while max(after) < BACK * rate and time.monotonic() < deadline:
        after += flood.rates(STEP_S)
    return after


def main() -> int:
    """Run one outage; 0 if nothing is lost, doubled or reordered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the broker is frozen (60)")
    with KafkaCluster(1) as kafka:
        outcome = suffer(kafka, "outage", parser.parse_args().seconds)
    sys.stdout.write(outcome.words() + "\n")
    return int(outcome.counts[1:] != (0, 0, 0))


if __name__ == "__main__":
    sys.exit(main())
