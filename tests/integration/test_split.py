"""Batches far above a real broker's limit: split, sent in pieces, read back; records too large alone fail alone."""

from __future__ import annotations

import os
import random
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from slabpress import DeliveryError, DeliveryHandle, Producer
from slabpress._native import NO_LIMIT
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import admin_client, wait_until
from tests.support.reference_batch import java_partition

pytestmark = pytest.mark.kafka

PARTITIONS: Final = 4
THREADS: Final = 3
LIMIT: Final = 12_000
# A batch is ten times what the broker takes, and the arena holds few of them.
SETTINGS: Final[dict[str, Any]] = {
    "buffer_memory": "1MiB",
    "batch_size": 120_000,
    "workers": 2,
    "linger_ms": 20,
    "acks": "all",
}
KEYS: Final = [b"key-%d" % number for number in range(40)]
WAIT_S: Final = 60.0

Sent = tuple[bytes, bytes, DeliveryHandle]


def values_of(seed: int, count: int) -> Iterator[bytes]:
    """Values that say who they are: mostly small, some that compress, some too large by themselves."""
    rng = random.Random(seed)
    for number in range(count):
        name = b"%d/%d:" % (seed, number)
        size = rng.choice((10, 100, 100, 1000, 1000, 3000, 9000))
        if rng.random() < 0.02:
            yield name + rng.randbytes(rng.randrange(14_000, 40_000))
        elif rng.random() < 0.5:
            yield name + rng.randbytes(size)
        else:
            yield name + b"event " * (size // 6)


def key_of(value: bytes) -> bytes:
    return KEYS[len(value) % len(KEYS)]


def parts_of(value: bytes) -> dict[str, Any]:
    """The rest of a record, which follows from its value: timestamps go up and down."""
    headers = [("size", b"%d" % len(value)), ("größe", None)] if len(value) % 3 == 0 else None
    return {"key": key_of(value), "headers": headers, "timestamp_ms": 1_700_000_000_000 + len(value) * 7919 % 1000}


def is_too_large(value: bytes) -> bool:
    """Nothing of these sizes lies near the limit; those above it do not compress."""
    return len(value) > LIMIT


def make_topic(kafka: KafkaCluster, topic: str, limit: int = LIMIT, partitions: int = PARTITIONS) -> None:
    kafka.create_topic(topic, partitions, config={"max.message.bytes": str(limit)})


def send_in_thread(producer: Producer, topic: str, seed: int, count: int, sent: list[Sent]) -> threading.Thread:
    def run() -> None:
        values = values_of(seed, count)
        sent.extend((key_of(value), value, producer.send(topic, value, **parts_of(value))) for value in values)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def flush(producer: Producer) -> int:
    """Flush; how many records were not delivered."""
    try:
        producer.flush(WAIT_S)
    except DeliveryError as error:
        return error.records
    return 0


def check_all_free(producer: Producer) -> None:
    """Law 2, at rest."""
    arena = producer._session.arena
    assert arena.batch_states.tally(1) == [arena.geometry.batch_count]
    assert arena.slabs.count_free() == arena.geometry.slab_count
    assert arena.outputs.count_free() == arena.geometry.output_count


def check_sums(producer: Producer) -> None:
    """Conservation, at any moment."""
    stats, geometry = producer.stats(), producer.plan.geometry
    parts = stats.records_delivered, stats.records_failed, stats.records_pending
    assert sum(parts) == stats.records_accepted
    assert min(parts) >= 0
    assert sum(stats.batches.values()) == geometry.batch_count
    assert sum(stats.slabs.values()) == geometry.slab_count
    assert sum(stats.output_buffers.values()) == geometry.output_count


def logs_of(kafka: KafkaCluster, topic: str) -> dict[int, list[bytes]]:
    """The values of each partition; offsets without a gap, and all records as they were sent."""
    logs: defaultdict[int, list[bytes]] = defaultdict(list)
    for record in read_back(kafka.bootstrap_servers, topic, timeout_s=WAIT_S):
        assert record.offset == len(logs[record.partition])
        assert record.value is not None
        parts = parts_of(record.value)
        found = (record.key, record.headers, record.timestamp_ms)
        assert found == (parts["key"], tuple(parts["headers"] or ()), parts["timestamp_ms"])
        logs[record.partition].append(record.value)
    return logs


def check_offsets(logs: dict[int, list[bytes]], sent: Sequence[Sent]) -> None:
    """Each record that a handle calls delivered is where it says; the others are exactly those that are too large."""
    for key, value, handle in sent:
        error = handle.exception(0)
        if is_too_large(value):
            assert isinstance(error, DeliveryError)
            assert (error.name, error.code) == ("MESSAGE_TOO_LARGE", 10)
            continue
        assert error is None
        delivery = handle.result(0)
        assert delivery.partition == java_partition(key, PARTITIONS)
        assert delivery.offset is not None
        assert logs[delivery.partition][delivery.offset] == value


def expected_of(sent: Sequence[Sent], partition: int) -> list[bytes]:
    return [value for key, value, _ in sent if not is_too_large(value) and java_partition(key, PARTITIONS) == partition]


def check_exactly_once_in_order(logs: dict[int, list[bytes]], threads: Sequence[list[Sent]]) -> None:
    """Each thread's records that fit, once each, in its order in every partition, and nothing else."""
    for partition, log in logs.items():
        wanted = [expected_of(sent, partition) for sent in threads]
        for seed, values in enumerate(wanted):
            assert [value for value in log if value.startswith(b"%d/" % seed)] == values
        assert len(log) == sum(map(len, wanted))
    assert sum(map(len, logs.values())) == sum(not is_too_large(value) for sent in threads for _, value, _ in sent)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_what_the_broker_takes_is_there_once_in_order_and_only_what_is_too_large_fails(
    kafka: KafkaCluster, topic: str, codec: str
) -> None:
    """While the arena is full all the time and threads wait for room."""
    make_topic(kafka, topic)
    sent: list[list[Sent]] = [[] for _ in range(THREADS)]
    with Producer(kafka.bootstrap_servers, compression_type=codec, **SETTINGS) as producer:
        threads = [send_in_thread(producer, topic, seed, 500, sent[seed]) for seed in range(THREADS)]
        while any(thread.is_alive() for thread in threads):
            check_sums(producer)
            threads[0].join(0.01)
        failed = flush(producer)
        check_sums(producer)
        stats = producer.stats()
        assert stats.network["splits"] > 20
        assert stats.coordinator["room_waits"] > 0
        assert failed == stats.records_failed == sum(is_too_large(value) for some in sent for _, value, _ in some)
        assert failed > 10
        check_all_free(producer)
    logs = logs_of(kafka, topic)
    check_exactly_once_in_order(logs, sent)
    for some in sent:
        check_offsets(logs, some)


# --- the limit changes --------------------------------------------------------------------------------------------


def set_limit(kafka: KafkaCluster, topic: str, limit: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    client = admin_client(kafka.bootstrap_servers)
    for change in client.incremental_alter_configs([resource]).values():
        change.result(WAIT_S)


def test_a_limit_that_is_lowered_and_raised_at_run_time_costs_no_record(kafka: KafkaCluster, topic: str) -> None:
    make_topic(kafka, topic, limit=1_000_000, partitions=1)
    values = (b"%d:" % number + b"x" * 500 for number in count())
    sent: list[bytes] = []
    with Producer(kafka.bootstrap_servers, **SETTINGS) as producer:

        def send_on() -> None:
            for value in (next(values) for _ in range(50)):
                sent.append(value)
                producer.send(topic, value, **parts_of(value))

        def splits() -> int:
            return producer.stats().network["splits"]

        def batch_limit() -> int:
            return int(producer._session._topics.known[topic].batch_limit)

        def send_until(least: int, most: int, what: str) -> None:
            def sent_and_so() -> bool:
                send_on()
                return least <= batch_limit() <= most

            wait_until(sent_and_so, what, WAIT_S, 0)

        for _ in range(20):
            send_on()
        producer.flush(WAIT_S)
        assert splits() == 0
        lowered_at = len(sent)
        set_limit(kafka, topic, LIMIT)
        send_until(1, LIMIT, "batches to become smaller")
        assert splits() > 0
        for _ in range(20):
            send_on()
        producer.flush(WAIT_S)
        raised_at = len(sent)
        set_limit(kafka, topic, 1_000_000)
        send_until(producer.plan.batch_bytes, NO_LIMIT, "batches to grow again")
        producer.flush(WAIT_S)
        assert producer.stats().records_failed == 0
        check_all_free(producer)
    assert logs_of(kafka, topic) == {0: sent}
    sizes = {batch.base_offset: batch.size for batch in kafka.dump_log(topic, 0)}
    assert max(size for offset, size in sizes.items() if offset < lowered_at) > LIMIT
    assert max(size for offset, size in sizes.items() if offset >= raised_at) > LIMIT


# --- nothing grows --------------------------------------------------------------------------------------------------

# Of heap; holes move a little.
ALLOWANCE_KIB: Final = 128
ROUND: Final = 2000


def heap_kib(pid: int) -> int:
    """What a process has of its own: unlike PSS it does not depend on who else shares its libraries."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def test_no_process_grows_over_20_000_records_that_are_split_or_fail(kafka: KafkaCluster, topic: str) -> None:
    """Batches of all sizes, as holes in a heap come from what varies; one record in forty is too large by itself."""
    make_topic(kafka, topic, limit=2500)
    rng, samples = random.Random(1), defaultdict[str, list[int]](list)
    sizes = [3000 if place % 40 == 0 else rng.randrange(150) for place in range(ROUND)]
    values = [rng.randbytes(size) for size in sizes]
    keys = [KEYS[place % len(KEYS)] for place in range(ROUND)]
    with Producer(kafka.bootstrap_servers, compression_type="lz4", **SETTINGS) as producer:
        for round_number in range(14):
            producer.send_many(topic, values, keys=keys)
            assert flush(producer) == ROUND // 40
            # Else batches would be small from the first round on.
            producer._session._topics.known[topic].batch_limit = rng.randrange(10_000, 120_000)
            if round_number >= 4:
                for name, pid in [("own", os.getpid()), *producer._coordinator._supervisor.processes()]:
                    samples[name].append(heap_kib(pid))
        assert producer.stats().network["splits"] > 500
        check_all_free(producer)
    assert len(samples) == 4
    for name, found in samples.items():
        grown = statistics.median(found[5:]) - statistics.median(found[:5])
        assert grown <= ALLOWANCE_KIB, f"{name}: {found}"
