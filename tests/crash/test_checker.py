"""The checker finds what is put in on purpose, and nothing else."""

from __future__ import annotations

import pytest

from tests.crash.checker import DAMAGED, DOUBLED, FAULTS, LOST, REORDERED, Checker, Findings
from tests.crash.plan import KINDS, faults
from tests.crash.records import (
    CODECS,
    PARTITIONS,
    THREADS,
    VALUE_BYTES_MAX,
    VALUE_BYTES_MIN,
    origin_of,
    record_of,
    topic_of,
)
from tests.crash.tally import Claim
from tests.support.kafka import Record
from tests.support.reference_batch import java_partition

SEED = 11
RUN = 3
COUNT = 400

Log = dict[tuple[str, int], list[Record]]


def stored(log: Log, thread: int, number: int) -> None:
    """Append a record to the log, as a correct producer would."""
    made = record_of(SEED, RUN, thread, number)
    partition = java_partition(made.key, PARTITIONS) if made.key is not None else number // 50 % PARTITIONS
    records = log.setdefault((topic_of(made.codec), partition), [])
    records.append(Record(partition, len(records), made.key, made.value, made.headers, 1_700_000_000_000 + number))


def whole_log() -> Log:
    """Two threads' records, one after the other by turns."""
    log: Log = {}
    for number in range(1, COUNT + 1):
        for thread in range(2):
            stored(log, thread, number)
    return log


def check(log: Log, *, accepted: int = COUNT, attempted: int = COUNT) -> Findings:
    claims = {(RUN, thread): Claim(accepted, attempted) for thread in range(2)}
    checker = Checker(SEED, claims, PARTITIONS)
    for (topic, _), records in log.items():
        for offset, record in enumerate(records):
            checker.see(topic, record._replace(offset=offset))
    return checker.finish()


def counts(findings: Findings) -> dict[str, int]:
    return {fault: findings.count(fault) for fault in FAULTS if findings.count(fault)}


@pytest.fixture
def log() -> Log:
    return whole_log()


def longest(log: Log) -> list[Record]:
    return max(log.values(), key=len)


def test_a_log_as_it_should_be_is_clean(log: Log) -> None:
    findings = check(log)
    assert findings.is_clean
    assert findings.offenders == ()
    assert [(row.run, row.accepted, row.stored) for row in findings.rows] == [(RUN, 2 * COUNT, 2 * COUNT)]


def test_a_lost_record_is_found_and_told_of(log: Log) -> None:
    missing = longest(log).pop(5)
    origin = origin_of(missing.value)
    assert origin is not None
    findings = check(log)
    assert counts(findings) == {LOST: 1}
    (offender,) = findings.offenders
    assert (offender.thread, offender.number) == (origin.thread, origin.number)
    assert "the one before" in offender.words


def test_a_whole_partition_that_is_lost_is_counted(log: Log) -> None:
    gone = log.pop(next(iter(log)))
    assert counts(check(log)) == {LOST: len(gone)}


def test_a_doubled_record_is_found_wherever_the_second_is(log: Log) -> None:
    records = longest(log)
    records.insert(8, records[7])
    records.append(records[2])
    findings = check(log)
    assert counts(findings) == {DOUBLED: 2}
    assert f"and before that {next(t for t, r in log.items() if r is records)[0]}" in findings.offenders[0].words


def test_a_double_in_another_partition_is_a_double_and_is_misplaced(log: Log) -> None:
    (topic, partition), records = next(iter(log.items()))
    keyed = next(record for record in records if record.key is not None)
    other = (partition + 1) % PARTITIONS
    log[topic, other].append(keyed._replace(partition=other))
    assert counts(check(log)) == {DOUBLED: 1, DAMAGED: 1}


def test_a_record_that_was_passed_by_its_successor_is_found(log: Log) -> None:
    records = longest(log)
    thread = [place for place, record in enumerate(records) if (o := origin_of(record.value)) and o.thread == 0]
    first, second = thread[3], thread[4]
    records[first], records[second] = records[second], records[first]
    findings = check(log)
    assert counts(findings) == {REORDERED: 1}
    assert "after number" in findings.offenders[0].words


def test_threads_may_overtake_each_other(log: Log) -> None:
    records = longest(log)
    records.sort(key=lambda record: (origin_of(record.value) or (0, 0))[1])
    assert check(log).is_clean


def test_a_record_whose_call_did_not_return_may_be_there_or_not(log: Log) -> None:
    assert check(log, accepted=COUNT - 3).is_clean
    assert check(log, attempted=COUNT + 16).is_clean
    assert counts(check(log, accepted=COUNT - 3, attempted=COUNT - 3)) == {DAMAGED: 6}


@pytest.mark.parametrize(
    "change",
    [
        {"value": b""},
        {"value": None},
        {"key": b"another"},
        {"headers": (("x", b"y"),)},
    ],
)
def test_a_record_that_is_not_as_it_was_sent_is_found(log: Log, change: dict[str, object]) -> None:
    records = longest(log)
    records[4] = records[4]._replace(**change)  # type: ignore[arg-type] # one of the fields each
    assert counts(check(log))[DAMAGED] == 1


def test_a_value_with_one_wrong_byte_is_found(log: Log) -> None:
    records = longest(log)
    place = next(place for place, record in enumerate(records) if record.value and len(record.value) > 100)
    value = bytearray(records[place].value or b"")
    value[-1] ^= 1
    records[place] = records[place]._replace(value=bytes(value))
    assert counts(check(log)) == {DAMAGED: 1}


def test_records_are_of_every_kind() -> None:
    made = [record_of(SEED, 1, thread, number) for thread in range(THREADS) for number in range(1, 1001)]
    assert {record.codec for record in made} == set(range(len(CODECS)))
    assert 0.4 < sum(record.key is None for record in made) / len(made) < 0.6
    assert 0.2 < sum(bool(record.headers) for record in made) / len(made) < 0.3
    sizes = [len(record.value) for record in made]
    assert min(sizes) == VALUE_BYTES_MIN
    assert VALUE_BYTES_MAX * 0.9 < max(sizes) <= VALUE_BYTES_MAX


def test_the_seed_decides_the_faults() -> None:
    def first(seed: int) -> list[object]:
        return [fault for fault, _ in zip(faults(seed, tuple(KINDS), of_brokers=False), range(200), strict=False)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    kinds = {kind for kind, _ in KINDS.values()}
    brokers = {fault.kind for fault, _ in zip(faults(1, tuple(KINDS), of_brokers=True), range(200), strict=False)}
    others = {fault.kind for fault, _ in zip(faults(1, tuple(KINDS), of_brokers=False), range(500), strict=False)}
    assert brokers | others == kinds
    assert not brokers & others
