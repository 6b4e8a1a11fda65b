"""The network process against brokers: what a coordinator and a worker see of it."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path
from uuid import UUID

import pytest
from confluent_kafka import Consumer, TopicPartition

from slabpress.results import EXPIRED_SENT, EXPIRED_UNSENT, PROTOCOL
from slabpress.shm.control import COORDINATOR, FIRST_WORKER
from slabpress.shm.layout import SEAL_HEAD_AT
from slabpress.shm.states import DONE, IN_FLIGHT, READY
from tests.network.fake_broker import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    Asked,
    FakeBroker,
    PartitionAnswer,
)
from tests.network.rig import OLD_TIMESTAMP_MS, Record, Rig, noida
from tests.support.mock_cluster import MockCluster
from tests.support.proxy import Proxy
from tests.support.reference_batch import decode_batch

NO_LEADER = -1
NOT_LEADER = 6
MESSAGE_TOO_LARGE = 10
INVALID_RECORD = 87
ID = UUID("00000000-0000-0000-0000-0000000000ab")
both_kinds = pytest.mark.parametrize("direct", [False, True], ids=["compressing", "direct"])


def read(bootstrap: str, topic: str, partition: int, count: int) -> list[bytes | None]:
    """Read a partition's first values back with an independent client."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "check.crcs": True})
    values: list[bytes | None] = []
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        deadline = time.monotonic() + 20
        while len(values) < count and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                values.append(message.value())
    finally:
        consumer.close()
    return values


def test_delivers_to_noida_in_seal_order(tmp_path: Path) -> None:
    """Noida checks CRCs, sizes and counts; workers that finish in reverse change no order (law 4)."""
    with noida(tmp_path) as address, Rig(address) as rig:
        assert rig.know("orders") == 1
        sealed = [rig.seal("orders", 0, [Record(b"%d-%d" % (n, r)) for r in range(3)]) for n in range(8)]
        for index in reversed(sealed):
            rig.compress(index)
        offsets = [rig.result(index).base_offset for index in sealed]
        assert offsets == [0, 3, 6, 9, 12, 15, 18, 21]
        expected = [b"%d-%d" % (n, r) for n in range(8) for r in range(3)]
        assert read(address, "orders", 0, 24) == expected
        assert rig.outputs_are_free()
        assert rig.counter("records_delivered") == 24


def test_a_delivery_rings_a_sleeping_worker_only_where_something_waits_for_one(fake: FakeBroker) -> None:
    with Rig(fake.address) as rig:
        rig.know("t")
        bell = rig.control.bells[FIRST_WORKER]

        def is_rung_by_a_delivery(*, waiting: bool) -> bool:
            for partition in (0, 1):  # the coordinator is rung first: by the next one a worker has been
                rig.arena.memory.store_u64(SEAL_HEAD_AT, rig.arena.seal_tail + 1 - waiting)
                rig.result(rig.send("t", partition, b"v"))
            return bool(select.select([bell], [], [], 0)[0])

        is_rung_by_a_delivery(waiting=False)  # a leader that becomes known rings as well
        rig.control.lie_down(FIRST_WORKER)
        bell.drain()
        assert not is_rung_by_a_delivery(waiting=False)
        assert is_rung_by_a_delivery(waiting=True)


@both_kinds
def test_a_result_wakes_the_callback_thread_that_sleeps_for_it_or_else_the_coordinator(
    fake: FakeBroker, direct: bool
) -> None:
    with Rig(fake.address, direct=direct) as rig:
        rig.know("t")
        rig.result(rig.send("t", 0, b"v"))  # a leader that becomes known rings as well
        bell, sleeper = rig.control.bells[COORDINATOR], rig.arena.results_sleeper
        rig.control.lie_down(COORDINATOR)
        bell.drain()
        sleeper.lie_down()
        rig.send("t", 0, b"v")
        sleeper.wait()
        assert len(rig.arena.batch_states.find_all(DONE)) == 1
        assert not select.select([bell], [], [], 0)[0]
        rig.send("t", 0, b"v")
        assert select.select([bell], [], [], 30)[0], "nobody slept, so the coordinator is rung"
        assert len(rig.arena.batch_states.find_all(DONE)) == 2


def test_batch_bytes_are_those_of_the_reference(fake: FakeBroker) -> None:
    records = [
        Record(b"v" * 40_000, b"k", OLD_TIMESTAMP_MS + 7),
        Record(b"w", None, OLD_TIMESTAMP_MS),
        Record(b"", b"", OLD_TIMESTAMP_MS + 9),
    ]
    with Rig(fake.address) as rig:
        rig.know("t")
        index = rig.seal("t", 3, records)
        rig.compress(index)
        assert rig.result(index).code == 0
    [(topic, partition, data)] = fake.records()
    header, decoded = decode_batch(data)
    assert (topic, partition) == ("t", 3)
    assert [(r.value, r.key, r.timestamp_ms) for r in decoded] == [tuple(record) for record in records]
    assert (header.base_timestamp, header.max_timestamp) == (OLD_TIMESTAMP_MS + 7, OLD_TIMESTAMP_MS + 9)


def test_one_request_carries_several_partitions_but_not_more_than_the_limit(fake: FakeBroker) -> None:
    with Rig(fake.address, delivery={"max_request_size": 30_000}, start=False) as rig:
        sealed = [rig.send("t", partition, b"x" * 12_000) for partition in range(4)]
        rig.start()
        for index in sealed:
            assert rig.result(index).code == 0
    sizes = [sum(len(t.partition_data) for t in asked.body.topic_data) for asked in fake.produced()]
    assert sizes == [2, 2]


def test_a_batch_over_the_request_limit_goes_alone(fake: FakeBroker) -> None:
    with Rig(fake.address, delivery={"max_request_size": 1000}) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x" * 5_000)).code == 0


def test_bootstrap_of_which_only_the_last_answers(mock: MockCluster) -> None:
    dead = [f"127.0.0.1:{port}" for port in _closed_ports(2)]
    with Rig([*dead, mock.bootstrap_servers.split(",")[0]]) as rig:
        assert rig.know("t") == 4
        assert rig.arena.report() == ""


def test_bootstrap_over_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener, Rig(f"[::1]:{listener.getsockname()[1]}") as rig:
        rig.want("t")
        listener.settimeout(10)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(8)[4:] == b"\0\x12\0\x03"
        rig.until(lambda: "[::1]:" in rig.arena.report(), "a report of the server")


def test_dead_bootstrap_is_reported_and_forgotten_when_it_answers() -> None:
    [port] = _closed_ports(1)
    with Rig([f"127.0.0.1:{port}", "no-such-host.invalid:9092"]) as rig:
        index = rig.want("t")
        rig.until(lambda: rig.arena.report().count(":") >= 4, "a report of both servers")
        report = rig.arena.report()
        assert f"127.0.0.1:{port}: connection refused" in report
        assert "no-such-host.invalid:9092: name lookup failed" in report
        assert rig.topics.answer(index).answers == 0
        with FakeBroker({"t": 1}, port=port):
            rig.know("t")
            rig.until(lambda: rig.arena.report() == "", "the report to be empty")


def test_unknown_topic_is_answered_retried_with_backoff_and_found(fake: FakeBroker) -> None:
    with Rig(fake.address, settings={"retry_backoff_ms": 50, "retry_backoff_max_ms": 100}) as rig:
        index = rig.want("later")
        rig.until(lambda: rig.topics.answer(index).error_code == 3, "an answer that it is unknown")
        started, asked = time.monotonic(), len(fake.asked)
        rig.until(lambda: len(fake.asked) >= asked + 5, "five more requests")
        assert time.monotonic() - started > 5 * 0.04
        fake.topics["later"] = 2
        assert rig.know("later") == 2
        assert rig.topics.answer(index).error_code == 0


def test_a_topic_that_is_unwanted_is_asked_for_no_more(fake: FakeBroker) -> None:
    with Rig(fake.address, settings={"retry_backoff_ms": 5, "retry_backoff_max_ms": 5}) as rig:
        index = rig.want("nothing")
        rig.until(lambda: rig.topics.answer(index).answers >= 3, "three answers")
        rig.topics.unwant(index)
        rig.control.wake(1)
        rig.know("t")
        assert [topic.name for topic in fake.asked[-1].body.topics] == ["t"]


def test_a_new_topic_does_not_wait_for_the_backoff(fake: FakeBroker) -> None:
    fake.topics["u"] = 1
    with Rig(fake.address, settings={"retry_backoff_ms": 60_000, "retry_backoff_max_ms": 60_000}) as rig:
        rig.know("t")
        rig.know("u", 10)


def test_growth_of_a_topic_is_told_when_asked_to_look_again(fake: FakeBroker) -> None:
    with Rig(fake.address) as rig:
        index = rig.want("t")
        assert rig.know("t") == 4
        fake.topics["t"] = 9
        rig.topics.request_refresh()
        rig.control.wake(1)
        rig.until(lambda: rig.topics.answer(index).partitions == 9, "nine partitions")


def test_metadata_is_asked_again_when_it_is_old(fake: FakeBroker) -> None:
    with Rig(fake.address, settings={"metadata_max_age_ms": 100}) as rig:
        index = rig.want("t")
        rig.until(lambda: rig.topics.answer(index).answers >= 4, "four answers")


@both_kinds
@pytest.mark.parametrize("code", [NOT_LEADER, 3, 7, 19])
def test_retriable_errors_are_retried_and_keep_the_order(mock: MockCluster, code: int, direct: bool) -> None:
    with Rig(mock.bootstrap_servers, direct=direct) as rig:
        rig.know("t")
        mock.push_request_errors(PRODUCE, [code, code, code])
        sealed = [rig.send("t", 0, b"%d" % n) for n in range(5)]
        assert [rig.result(index).base_offset for index in sealed] == [0, 1, 2, 3, 4]
        assert rig.counter("retries") == 3
        assert rig.outputs_are_free()
    assert read(mock.bootstrap_servers, "t", 0, 5) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_broken_connection_is_retried(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers) as rig:
        rig.know("t")
        mock.push_request_errors(PRODUCE, [-195])
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert rig.counter("retries") == 1
        assert rig.counter("reconnects") >= 1


def test_leader_change_moves_the_queue(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers) as rig:
        rig.know("t")
        for leader in (1, 2, 1):
            mock.set_leader("t", 0, leader)
            assert rig.result(rig.send("t", 0, b"x")).code == 0


def test_a_partition_without_a_leader_holds_up_only_its_own(fake: FakeBroker) -> None:
    fake.leaders["t", 0] = NO_LEADER
    with Rig(fake.address) as rig:
        rig.know("t")
        waiting = rig.send("t", 0, b"y")
        for _ in range(3):
            assert rig.result(rig.send("t", 1, b"z")).code == 0
        assert not rig.done(waiting)
        del fake.leaders["t", 0]
        assert rig.result(waiting).code == 0


def test_the_leader_that_an_answer_names_is_asked_at_once(mock: MockCluster) -> None:
    """KIP-951: librdkafka's mock names the new leader in the answer."""
    limits = {"retry_backoff_ms": 1, "retry_backoff_max_ms": 1}
    with Rig(mock.bootstrap_servers, settings=limits) as rig:
        rig.know("t")
        mock.set_leader("t", 0, 1)
        rig.topics.request_refresh()
        rig.control.wake(1)
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        mock.set_leader("t", 0, 2)
        # Metadata breaks its connection, so only the hint can tell.
        mock.push_request_errors(METADATA, [-195] * 5000)
        assert rig.result(rig.send("t", 0, b"y")).code == 0


def test_a_leader_that_is_none_any_more_leads_to_fresh_metadata(fake: FakeBroker) -> None:
    with FakeBroker({"t": 4}) as second, Rig(fake.address) as rig:
        rig.know("t")
        fake.on_produce = lambda _topic, _partition: PartitionAnswer(NOT_LEADER)
        fake.more_brokers[2] = ("127.0.0.1", second.port)
        fake.leaders["t", 0] = 2
        fake.epoch = 1
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert len(second.produced()) == 1


def test_a_broker_that_is_down_holds_up_only_its_own(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers) as rig:
        rig.know("t")
        for partition in range(2):
            mock.set_leader("t", partition, partition + 1)
        mock.set_down(1)
        stuck = rig.send("t", 0, b"stuck")
        for _ in range(3):
            assert rig.result(rig.send("t", 1, b"flows")).code == 0
        assert not rig.done(stuck)
        mock.set_up(1)
        assert rig.result(stuck).code == 0


def test_final_errors_say_what_happened(fake: FakeBroker) -> None:
    answers = {
        0: PartitionAnswer(MESSAGE_TOO_LARGE),
        1: PartitionAnswer(INVALID_RECORD, record_errors=((1, "key is null"), (2, "")), message="bad records"),
        2: PartitionAnswer(46, base_offset=70),
        3: PartitionAnswer(-1, message="disk on fire"),
    }
    fake.on_produce = lambda _, partition: answers[partition]
    with Rig(fake.address) as rig:
        rig.know("t")
        sealed = [rig.send("t", 0, b"a" * 1000)]
        sealed += [rig.send("t", partition, b"a" * 1000, b"b", b"c") for partition in range(1, 4)]
        large, bad, duplicate, broken = [rig.result(index) for index in sealed]
        assert rig.counter("records_failed") == 7
    size = len(next(data for _, partition, data in fake.records() if partition == 0))
    assert large.code == MESSAGE_TOO_LARGE
    over = f"MESSAGE_TOO_LARGE: a single record makes a batch of {size} bytes, over the topic's max.message.bytes"
    assert large.text == over
    assert (bad.code, bad.record_index) == (INVALID_RECORD, 1)
    assert bad.text == "INVALID_RECORD: record 1 and 1 more of 3: key is null"
    assert (duplicate.code, duplicate.base_offset) == (0, 70)
    assert broken.text == "UNKNOWN_SERVER_ERROR: disk on fire"
    assert not broken.retriable


def test_acks_0_waits_for_no_response(fake: FakeBroker) -> None:
    with Rig(fake.address, delivery={"acks": 0}) as rig:
        rig.know("t")
        for _ in range(20):
            result = rig.result(rig.send("t", 0, b"x"))
            assert (result.code, result.base_offset) == (0, -1)
        rig.until(lambda: len(fake.produced()) == 20, "all requests to arrive")
        assert rig.counter("reconnects") == 0
    assert {asked.connection for asked in fake.produced()} == {fake.produced()[0].connection}


def test_acks_0_bears_a_broker_that_answers(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers, delivery={"acks": 0}) as rig:
        rig.know("t")
        for _ in range(20):
            assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert read(mock.bootstrap_servers, "t", 0, 20) == [b"x"] * 20
        assert rig.counter("reconnects") == 0


def test_throttled_broker_is_left_alone(fake: FakeBroker) -> None:
    fake.throttle_ms = 400
    with Rig(fake.address, settings={"request_timeout_ms": 300}) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        started = time.monotonic()
        fake.throttle_ms = 0
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert time.monotonic() - started > 0.3
        assert rig.counter("throttle_ms") == 400
        assert rig.counter("retries") == 0


def test_request_timeout_closes_the_connection_and_tries_again(fake: FakeBroker) -> None:
    fake.silent = True
    with Rig(fake.address, settings={"request_timeout_ms": 200}) as rig:
        rig.know("t")
        index = rig.send("t", 0, b"x")
        rig.until(lambda: len(fake.produced()) == 2, "a second try")
        assert fake.produced()[0].connection != fake.produced()[1].connection
        fake.silent = False
        assert rig.result(index).code == 0
    first, second, *_ = fake.records()
    assert first == second


def test_delivery_timeout_before_any_try(fake: FakeBroker) -> None:
    fake.leaders["t", 0] = NO_LEADER
    with Rig(fake.address, delivery={"delivery_timeout_ms": 300}) as rig:
        rig.know("t")
        result = rig.result(rig.send("t", 0, b"x"))
        assert result.code == EXPIRED_UNSENT
        assert result.retriable
        assert result.text.startswith("DELIVERY_TIMEOUT: not sent within 300 ms; the partition has no leader")
        assert rig.outputs_are_free()


@both_kinds
def test_delivery_timeout_waits_for_what_is_on_the_wire(fake: FakeBroker, direct: bool) -> None:
    """Law 7: no buffer is freed by a timer; what is in flight ends with the request timeout."""
    fake.silent = True
    limits = {"request_timeout_ms": 700}
    with Rig(fake.address, delivery={"delivery_timeout_ms": 200}, settings=limits, direct=direct) as rig:
        rig.know("t")
        started = time.monotonic()
        index = rig.send("t", 0, b"x")
        held = rig.arena.outputs.chain(rig.descriptors.output(index).first_output)
        behind = rig.send("t", 0, b"y")
        assert rig.result(behind).code == EXPIRED_UNSENT
        assert rig.arena.batch_states.load(index) == IN_FLIGHT
        assert not any(map(rig.is_free, held))
        result = rig.result(index)
        assert time.monotonic() - started > 0.6
        assert result.code == EXPIRED_SENT
        assert "no response within 700 ms" in result.text
        assert all(map(rig.is_free, held))


def test_late_success_is_success(fake: FakeBroker) -> None:
    def late(asked: Asked) -> bytes:
        time.sleep(0.5)
        return fake.produce_answer(asked)

    fake.hooks[PRODUCE] = late
    with Rig(fake.address, delivery={"delivery_timeout_ms": 200}) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0


def test_a_batch_that_no_worker_has_finished_does_not_expire(fake: FakeBroker) -> None:
    with Rig(fake.address, delivery={"delivery_timeout_ms": 100}) as rig:
        rig.know("t")
        index = rig.seal("t", 0, [Record(b"x")])
        assert rig.result(rig.send("t", 1, b"y")).code == 0
        time.sleep(0.15)
        assert not rig.done(index)
        rig.compress(index)
        assert rig.result(index).code == EXPIRED_UNSENT


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: b"\0\0\0\x04" + (asked.correlation_id + 40).to_bytes(4, "big"),
        lambda _: b"\x7f\xff\xff\xff1234",
        lambda asked: b"\0\0\0\x06" + asked.correlation_id.to_bytes(4, "big") + b"\0\0",
        lambda _: b"\0\0\0\0",
        lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["unknown id", "too long", "cut off", "empty", "http"],
)
def test_nonsense_closes_the_connection_and_the_batch_is_sent_again(fake: FakeBroker, answer: object) -> None:
    def once(asked: Asked) -> bytes | None:
        del fake.hooks[PRODUCE]
        assert callable(answer)
        data = answer(asked)
        assert isinstance(data, bytes)
        return data

    fake.hooks[PRODUCE] = once
    with Rig(fake.address) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert rig.counter("retries") == 1
    assert len(fake.produced()) == 2


def test_an_answer_that_names_another_partition_is_nonsense(fake: FakeBroker) -> None:
    def once(asked: Asked) -> bytes:
        del fake.hooks[PRODUCE]
        data = fake.produce_answer(asked)
        assert data.count(b"\x02t") == 1
        return data.replace(b"\x02t", b"\x02u")

    fake.hooks[PRODUCE] = once
    with Rig(fake.address, settings={}) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert rig.counter("retries") == 1


def test_unknown_tags_of_a_produce_response_are_passed_over(fake: FakeBroker) -> None:

    def tagged(asked: Asked) -> bytes:
        data = fake.produce_answer(asked)
        if asked.version < 9:
            return data
        data = data[4:-1] + b"\x01\x07\x02zz"
        return len(data).to_bytes(4, "big") + data

    fake.hooks[PRODUCE] = tagged
    with Rig(fake.address) as rig:
        rig.know("t")
        for _ in range(3):
            assert rig.result(rig.send("t", 0, b"x")).code == 0
    assert [asked.version for asked in fake.produced()] == [12, 12, 12]


def test_a_broker_with_unknown_tags_is_spoken_to_in_older_versions(fake: FakeBroker) -> None:
    """Kio 0.6, which reads all but Produce and Metadata, cannot pass over a tagged field that it does not know."""
    asked_in = []

    def tagged(asked: Asked) -> bytes:
        asked_in.append(asked.version)
        data = fake.init_producer_id(asked)
        if asked.version < 2:
            return data
        data = data[4:-1] + b"\x01\x07\x02zz"
        return len(data).to_bytes(4, "big") + data

    fake.hooks[INIT_PRODUCER_ID] = tagged
    with Rig(fake.address, delivery={"enable_idempotence": True}) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
    assert asked_in[0] >= 2
    assert asked_in[-1] == 1
    assert [asked.version for asked in fake.produced()] == [8]


def test_topic_ids_are_used_when_the_cluster_has_them() -> None:
    with FakeBroker({"t": 1, "u": 1}, topic_ids={"t": ID}) as fake, Rig(fake.address) as rig:
        rig.know("t")
        rig.know("u")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert rig.result(rig.send("u", 0, b"x")).code == 0
        assert [asked.version for asked in fake.produced()] == [13, 12]


def test_zstd_needs_a_broker_that_knows_it() -> None:
    with FakeBroker({"t": 1}, versions={PRODUCE: (0, 6)}) as fake, Rig(fake.address) as rig:
        rig.know("t")
        index = rig.seal("t", 0, [Record(b"x")])
        rig.compress(index, codec=4, payload=b"zzz")
        result = rig.result(index)
        assert result.code == 76
        assert result.text.startswith("UNSUPPORTED_COMPRESSION_TYPE: zstd needs Produce v7")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert [asked.version for asked in fake.produced()] == [6]


def test_no_common_produce_version_is_final() -> None:
    with FakeBroker({"t": 1}, versions={PRODUCE: (14, 20)}) as fake, Rig(fake.address) as rig:
        rig.know("t")
        result = rig.result(rig.send("t", 0, b"x"))
        assert result.code == PROTOCOL
        assert result.text.startswith("PROTOCOL_ERROR: broker 1 speaks no Produce version")


def test_unsupported_api_versions_is_asked_again_on_the_same_connection(fake: FakeBroker) -> None:
    """KIP-511: the body of an error 35 is that of version 0, and names the range."""

    def refuse(asked: Asked) -> bytes:
        if asked.version > 1:
            body = b"\0\x23\0\0\0\x01\0\x12\0\0\0\x01"
            return (4 + len(body)).to_bytes(4, "big") + asked.correlation_id.to_bytes(4, "big") + body
        return fake.api_versions(asked)

    fake.hooks[API_VERSIONS] = refuse
    with Rig(fake.address) as rig:
        assert rig.know("t") == 4
    assert [(a.version, a.connection) for a in fake.asked[:2]] == [(3, 1), (1, 1)]


def test_a_broker_that_drops_api_versions_3_is_asked_with_0(fake: FakeBroker) -> None:
    fake.hooks[API_VERSIONS] = lambda asked: b"" if asked.version > 0 else fake.api_versions(asked)
    with Rig(fake.address) as rig:
        assert rig.know("t") == 4
    assert [(a.version, a.connection) for a in fake.asked[:2]] == [(3, 1), (0, 2)]


def test_a_connection_that_the_broker_closes_idle_is_opened_when_needed(fake: FakeBroker) -> None:
    with Rig(fake.address) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        before = fake.connections
        fake.cut()
        time.sleep(0.3)
        assert fake.connections == before
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert rig.counter("retries") == 0


def test_idle_connections_are_closed_after_their_time(mock: MockCluster) -> None:
    host, port = mock.bootstrap_servers.split(",")[0].split(":")
    with Proxy(host, int(port)) as proxy, Rig(proxy.address, settings={"connections_max_idle_ms": 150}) as rig:
        rig.know("t")
        rig.until(lambda: proxy.open_connections == 0, "no connection")
        assert rig.result(rig.send("t", 0, b"x")).code == 0


def test_idle_connections_may_stay_open(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers, settings={"connections_max_idle_ms": -1}) as rig:
        rig.know("t")
        for _ in range(5):
            assert rig.result(rig.send("t", 0, b"x")).code == 0
        before = _cpu_ticks(rig.pid)
        time.sleep(0.5)
        assert _cpu_ticks(rig.pid) - before <= 1
        assert rig.counter("reconnects") == 0


def test_brokers_that_all_move_are_found_through_bootstrap() -> None:
    with FakeBroker({"t": 1}) as first, Proxy("127.0.0.1", first.port) as proxy, Rig(proxy.address) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        with FakeBroker({"t": 1}) as second:
            proxy._target = ("127.0.0.1", second.port)
            first.close()
            assert rig.result(rig.send("t", 0, b"y")).code == 0
            assert second.produced()


@both_kinds
def test_successor_sends_what_the_dead_process_had_on_the_wire(fake: FakeBroker, direct: bool) -> None:
    fake.silent = True
    with Rig(fake.address, direct=direct) as rig:
        rig.know("t")
        sealed = [rig.send("t", n % 2, b"%d" % n) for n in range(6)]
        rig.until(lambda: rig.arena.batch_states.tally(7)[IN_FLIGHT] == 2, "two batches in flight")
        rig.kill()
        late = rig.seal("t", 0, [Record(b"late")])
        fake.silent = False
        rig.start()
        rig.compress(late)
        for index in [*sealed, late]:
            assert rig.result(index).code == 0
        assert rig.outputs_are_free()
    values = {0: [], 1: []}  # type: ignore[var-annotated]
    for _, partition, data in fake.records():
        values[partition].append(decode_batch(data)[1][0].value)
    assert values == {0: [b"0", b"0", b"2", b"4", b"late"], 1: [b"1", b"1", b"3", b"5"]}


@both_kinds
def test_killed_at_random_it_loses_nothing(mock: MockCluster, direct: bool) -> None:
    with Rig(mock.bootstrap_servers, direct=direct) as rig:
        rig.know("t")
        sealed = []
        for n in range(60):
            sealed.append(rig.send("t", n % 4, b"%d" % n))
            if n % 10 == 9:
                rig.kill()
                rig.start()
        for index in sealed:
            assert rig.result(index).code == 0
        assert rig.outputs_are_free()


def test_idle_it_uses_no_cpu_and_ends_silently(mock: MockCluster) -> None:
    with Rig(mock.bootstrap_servers) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == 0
        before = _cpu_ticks(rig.pid)
        time.sleep(1.0)
        assert _cpu_ticks(rig.pid) == before
        assert rig.stop() == (0, b"")


def test_ends_when_the_coordinator_dies() -> None:
    """The pidfd of the parent says so; here a stand-in process is the parent."""
    import subprocess

    stand_in = subprocess.Popen(["sleep", "60"])
    try:
        with Rig("127.0.0.1:9", start=False) as rig:
            os.close(rig._parent)
            rig._parent = os.pidfd_open(stand_in.pid)
            rig.start()
            process = rig.process
            assert process is not None
            stand_in.kill()
            stand_in.wait()
            assert process.wait(10) == 0
    finally:
        stand_in.kill()
        stand_in.wait()


def test_ctrl_c_does_not_end_it(fake: FakeBroker) -> None:
    with Rig(fake.address) as rig:
        os.kill(rig.pid, signal.SIGINT)
        assert rig.know("t") == 4


def test_batches_wait_ready_until_the_topic_has_a_leader(fake: FakeBroker) -> None:
    with Rig(fake.address) as rig:
        index = rig.send("soon", 0, b"x")
        rig.until(lambda: rig.topics.answer(0).answers > 2, "some answers")
        assert rig.arena.batch_states.load(index) == READY
        fake.topics["soon"] = 1
        assert rig.result(index).code == 0


@pytest.mark.parametrize("host", ["a..b", "no-such-host.invalid", "127.0.0.1"])
def test_a_leader_with_an_impossible_address_harms_nobody_else(fake: FakeBroker, host: str) -> None:
    fake.more_brokers[2] = (host, 70_000)
    fake.leaders["t", 0] = 2
    with Rig(fake.address, delivery={"delivery_timeout_ms": 500}) as rig:
        rig.know("t")
        stuck = rig.send("t", 0, b"x")
        for _ in range(3):
            assert rig.result(rig.send("t", 1, b"x")).code == 0
        result = rig.result(stuck)
        assert result.code == EXPIRED_UNSENT
        assert f"leader 2 at {host}:70000: " in result.text


def test_a_slow_reader_gets_large_requests_in_pieces(fake: FakeBroker) -> None:
    """The kernel takes a part at a time; the parts of several batches arrive whole and in order."""
    with (
        Proxy("127.0.0.1", fake.port) as proxy,
        Rig(
            proxy.address, slabs=200, delivery={"max_request_size": 3_000_000}, settings={"send_buffer_bytes": 4096}
        ) as rig,
    ):
        fake.advertised = proxy.port
        rig.know("t")
        proxy.up.bytes_per_s = 20_000_000
        sealed = [rig.seal("t", n % 4, [Record(b"%d" % n * 100_000)]) for n in range(8)]
        for index in sealed:
            rig.compress(index)
        for index in sealed:
            assert rig.result(index).code == 0
    values = sorted(decode_batch(data)[1][0].value or b"" for _, _, data in fake.records())
    assert values == [b"%d" % n * 100_000 for n in range(8)]


def test_metadata_that_does_not_parse_is_asked_elsewhere(fake: FakeBroker) -> None:
    def once(asked: Asked) -> bytes:
        del fake.hooks[METADATA]
        return fake.metadata(asked)[:20]

    fake.hooks[METADATA] = once
    with Rig(fake.address, settings={"request_timeout_ms": 200}) as rig:
        assert rig.know("t") == 4


def _closed_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
