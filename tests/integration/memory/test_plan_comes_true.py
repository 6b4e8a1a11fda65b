"""A plan that comes true: under the worst loads that could be found, no process takes more than was planned for it.

Every load runs in a job of its own; its processes are looked at from here, 12 times a second, and the most that each
took is compared with its lines of the plan. `pytest -rP` shows the figures of each load.

What is measured is PSS without shared memory, or what that would be if nothing else ran on the machine, whichever is
more; for the coordinator what the job takes more than the same job without slabpress; for the kernel the page tables.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from slabpress.footprints import KERNEL
from slabpress.observe.memory import process_bytes
from tests.integration.memory.compare import Held, check, hold, settings_of
from tests.integration.memory.watch import RunningJob, State, taken
from tests.support.mock_cluster import MockCluster

MIB: Final = 1 << 20
# A record's own header: key, headers and lengths come on top of the value.
RECORD_OVERHEAD: Final = 100
TWENTY: Final = [
    *[("none", None), ("gzip", None), ("gzip", 9), ("snappy", None), ("lz4", None)],
    *[("lz4", 12), ("lz4", 17), ("zstd", None), ("zstd", 9), ("zstd", -5)],
] * 2


def hold_every_kind(
    sink: MockCluster, topic: str, settings: State, *, columns: int, large: int, record_bytes: int = MIB, **order: Any
) -> Held:
    """Run one round of records of every kind, the largest of them as large as this."""
    sink.create_topic(topic, 4)
    return hold(
        "every_kind",
        servers=sink.bootstrap_servers,
        topic=topic,
        settings=settings,
        large_bytes=record_bytes - RECORD_OVERHEAD,
        rounds=1,
        columns=columns,
        large=large,
        **order,
    )


def hold_partitions(sink: MockCluster, topic: str, settings: State, partitions: int, rounds: int) -> Held:
    """Run so many rounds of a record for each of so many topic-partitions."""
    sink.create_topic(topic, partitions)
    return hold(
        "many_partitions",
        servers=sink.bootstrap_servers,
        topic=topic,
        settings=settings,
        partitions=partitions,
        rounds=rounds,
    )


@pytest.mark.parametrize(
    ("codec", "level", "workers"),
    [
        ("none", None, 1),
        ("gzip", None, 1),
        ("gzip", 9, 2),
        ("snappy", None, 1),
        ("lz4", None, 1),
        ("lz4", 17, 2),
        ("zstd", None, 1),
        ("zstd", 9, 2),
        ("zstd", 22, 2),
    ],
)
def test_every_codec(sink: MockCluster, topic: str, codec: str, level: int | None, workers: int) -> None:
    """Text, noise, small records with headers, full batches, single records, and those of max_request_size.

    One worker is the dearest: the fewer processes there are, the more of what they share each stands for.
    """
    slow = (codec, level) == ("zstd", 22)
    settings = settings_of(codec, level, buffer_memory="16MiB", workers=workers)
    check(hold_every_kind(sink, topic, settings, columns=1 if slow else 5, large=1 if slow else 4))


def test_records_of_a_large_max_request_size(sink: MockCluster, topic: str) -> None:
    settings = settings_of("zstd", buffer_memory="128MiB", max_request_size="16MiB")
    check(hold_every_kind(sink, topic, settings, columns=5, large=2, record_bytes=16 * MIB))


def test_a_thousand_topic_partitions_in_32_mib(sink: MockCluster, topic: str) -> None:
    held = hold_partitions(sink, topic, settings_of("lz4", buffer_memory="32MiB"), partitions=1000, rounds=20)
    check(held)
    assert held.facts["accepted"] == 20_001


def test_twenty_producers_of_one_pipeline(sink: MockCluster, topic: str) -> None:
    sink.create_topic(topic, 4)
    held = hold("many_producers", servers=sink.bootstrap_servers, topic=topic, codecs=TWENTY, large_bytes=MIB, rounds=2)
    check(held)


def test_the_page_tables_by_themselves(sink: MockCluster, topic: str) -> None:
    """Together with the sockets, of which one of four is used here, they are always within the kernel's lines."""
    held = hold_partitions(sink, topic, settings_of("none", buffer_memory="1MiB"), partitions=4, rounds=1000)
    check(held)
    planned = sum(total for name, total in held.lines if name.startswith("kernel") and name != "kernel: sockets")
    measured = next(figure.measured for figure in held.figures if figure.part == KERNEL)
    assert measured <= planned


def test_slabpress_says_of_its_children_what_is_true(sink: MockCluster, topic: str) -> None:
    """What stats() measures lies between what a process has for itself and that with all that it shares."""
    sink.create_topic(topic, 4)
    with RunningJob("records", servers=sink.bootstrap_servers, topic=topic, records=2000, partitions=4) as job:
        job.started()
        job.reads("round")
        job.go()
        state = job.reads("round")
        for name, pid in job.pids.items():
            found = taken(pid)
            assert found is not None
            assert found.anonymous <= process_bytes(pid) <= found.anonymous + found.files
            if state["measured"][name] is not None:  # that of the job cannot be told from the rest of it
                assert found.anonymous <= state["measured"][name] <= found.anonymous + found.files
        job.finish()


def test_what_was_not_planned_is_seen(sink: MockCluster, topic: str) -> None:
    """A job that keeps what slabpress should not: 200 bytes of each of 96,000 records."""
    held = hold_every_kind(sink, topic, settings_of("none", buffer_memory="16MiB"), columns=5, large=1, kept_bytes=200)
    with pytest.raises(AssertionError, match="coordinator"):
        check(held)
