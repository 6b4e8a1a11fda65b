"""Is every record that was accepted in the log, once, in order, and as it was sent?

The checker is given what each thread of each run claims, and then every record that an independent consumer reads. It
keeps 16 bytes a record.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from tests.crash.records import CODECS, Made, Origin, origin_of, record_of, topic_of
from tests.crash.tally import Claim
from tests.support.kafka import Record
from tests.support.reference_batch import java_partition

LOST: Final = "lost"
DOUBLED: Final = "doubled"
REORDERED: Final = "reordered"
DAMAGED: Final = "damaged"
FAULTS: Final = (LOST, DOUBLED, REORDERED, DAMAGED)
_TOLD_OF_EACH: Final = 20
# A place in the log in one word: 0 for none, else codec, partition, offset.
_PARTITION_BITS: Final = 8
_OFFSET_BITS: Final = 44


class Place(NamedTuple):
    """Where a record is in the log, and the time that it was sent at."""

    topic: str
    partition: int
    offset: int
    at_ms: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition} at {self.offset}"


class Offender(NamedTuple):
    """A record that is not as it should be.

    Attributes:
        fault: LOST, DOUBLED, REORDERED or DAMAGED.
        run, thread, number: which one it is; -1 where nobody can tell.
        at_ms: when it was sent, or the one accepted before it, as far as is known.
        words: what else is known.
    """

    fault: str
    run: int
    thread: int
    number: int
    at_ms: int
    words: str


class Row(NamedTuple):
    """What became of one run's records."""

    run: int
    accepted: int
    stored: int
    faults: Mapping[str, int]


class Findings(NamedTuple):
    """The checker's result: one row a run, and the first offenders of each kind."""

    rows: tuple[Row, ...]
    offenders: tuple[Offender, ...]

    def count(self, fault: str) -> int:
        """How many records of all runs have this fault."""
        return sum(row.faults[fault] for row in self.rows)

    @property
    def is_clean(self) -> bool:
        """Whether every record is as it should be."""
        return not any(self.count(fault) for fault in FAULTS)


class _Thread:
    """What was seen of one thread of one run."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.places = array("q", bytes(8 * (claim.attempted + 1)))
        self.times_ms = array("q", bytes(8 * (claim.attempted + 1)))
        self.last: dict[tuple[str, int], int] = {}  # the highest number seen in each topic-partition

    def place(self, number: int) -> Place | None:
        """Where a record was seen first."""
        packed = self.places[number]
        if not packed:
            return None
        codec, rest = divmod(packed - 1, 1 << (_PARTITION_BITS + _OFFSET_BITS))
        return Place(topic_of(codec), *divmod(rest, 1 << _OFFSET_BITS), self.times_ms[number])

    def neighbour(self, number: int, step: int, codec: int) -> Place | None:
        """Where the nearest record before or after this one is that went to the same topic."""
        number += step
        while 0 < number < len(self.places):
            place = self.place(number)
            if place is not None and place.topic == topic_of(codec):
                return place
            number += step
        return None


class Checker:
    """Looks at every record that a consumer reads.

    Args:
        seed: that of the records.
        claims: by run and thread, what was accepted.
        partitions: how many each topic has.
    """

    def __init__(self, seed: int, claims: Mapping[tuple[int, int], Claim], partitions: int) -> None:
        self._seed = seed
        self._partitions = partitions
        self._threads = {who: _Thread(claim) for who, claim in claims.items()}
        self._counts: dict[int, Counter[str]] = {run: Counter() for run, _ in claims}
        self._offenders: list[Offender] = []

    def see(self, topic: str, record: Record) -> None:
        """Take in a record; those of a partition must come in the order of their offsets."""
        origin = origin_of(record.value)
        thread = self._threads.get((origin.run, origin.thread)) if origin is not None else None
        place = Place(topic, record.partition, record.offset, record.timestamp_ms)
        if origin is None or thread is None or not 0 < origin.number <= thread.claim.attempted:
            self._offend(DAMAGED, origin or Origin(-1, -1, -1, -1), place, f"{place}: nobody has sent this")
            return
        words = self._damage(record_of(self._seed, origin.run, origin.thread, origin.number), origin, place, record)
        if words:
            self._offend(DAMAGED, origin, place, f"{place}: {words}")
        self._note(thread, origin, place)

    def _note(self, thread: _Thread, origin: Origin, place: Place) -> None:
        number = origin.number
        before = thread.place(number)
        if before is not None:
            self._offend(DOUBLED, origin, place, f"{place}, and before that {before}")
            return
        packed = (origin.codec << _PARTITION_BITS | place.partition) << _OFFSET_BITS | place.offset
        thread.places[number] = packed + 1
        thread.times_ms[number] = place.at_ms
        last = thread.last.get((place.topic, place.partition), 0)
        if number < last:
            self._offend(REORDERED, origin, place, f"{place}, after number {last} {thread.place(last)}")
        else:
            thread.last[place.topic, place.partition] = number

    def _damage(self, made: Made, origin: Origin, place: Place, record: Record) -> str:
        """What is wrong with a record; '' for nothing."""
        if origin.codec != made.codec or place.topic != topic_of(made.codec):
            return f"belongs to {topic_of(made.codec)}"
        parts: tuple[tuple[str, object, object], ...] = (
            ("key", record.key, made.key),
            ("value", record.value, made.value),
            ("headers", record.headers, made.headers),
        )
        for name, found, sent in parts:
            if found != sent:
                return f"the {name} is {found!r:.80}, not {sent!r:.80}"
        if made.key is not None and (wanted := java_partition(made.key, self._partitions)) != place.partition:
            return f"its key belongs to partition {wanted}"
        return ""

    def _offend(self, fault: str, origin: Origin, place: Place | None, words: str, at_ms: int = 0) -> None:
        counts = self._counts.setdefault(origin.run, Counter())
        counts[fault] += 1
        if sum(offender.fault == fault for offender in self._offenders) < _TOLD_OF_EACH:
            at_ms = place.at_ms if place is not None else at_ms
            self._offenders.append(Offender(fault, origin.run, origin.thread, origin.number, at_ms, words))

    def finish(self) -> Findings:
        """Everything has been read: look for what is missing."""
        for (run, number), thread in self._threads.items():
            for missing in range(1, thread.claim.accepted + 1):
                if not thread.places[missing]:
                    self._miss(run, number, missing, thread)
        return Findings(tuple(self._row(run) for run in sorted(self._counts)), tuple(self._offenders))

    def _miss(self, run: int, number: int, missing: int, thread: _Thread) -> None:
        made = record_of(self._seed, run, number, missing)
        before, after = (thread.neighbour(missing, step, made.codec) for step in (-1, 1))
        to = f"-{java_partition(made.key, self._partitions)}" if made.key is not None else ""
        words = f"to {CODECS[made.codec]}{to}, {len(made.value)} B; the one before: {before}, after: {after}"
        at_ms = before.at_ms if before is not None else 0
        self._offend(LOST, Origin(run, number, made.codec, missing), None, words, at_ms)

    def _row(self, run: int) -> Row:
        threads = [thread for (owner, _), thread in self._threads.items() if owner == run]
        stored = sum(len(thread.places) - thread.places.count(0) for thread in threads)
        accepted = sum(thread.claim.accepted for thread in threads)
        return Row(run, accepted, stored, {fault: self._counts[run][fault] for fault in FAULTS})
