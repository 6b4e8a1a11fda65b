"""An idempotent producer to which the cluster gives no producer id: what fails says why, and it ends some day."""

from __future__ import annotations

import time

import pytest

from tests.network.fake_broker import INIT_PRODUCER_ID, PRODUCE, FakeBroker, PartitionAnswer
from tests.network.rig import Rig
from tests.support.reference_batch import decode_batch

CLUSTER_AUTHORIZATION_FAILED = 31
TOPIC_AUTHORIZATION_FAILED = 29
UNSUPPORTED_VERSION = 35
COORDINATOR_LOAD_IN_PROGRESS = 14
IDEMPOTENT = {"enable_idempotence": True}
# Nothing of these tests waits for the end of such a backoff.
NEVER = {"retry_backoff_ms": 600_000, "retry_backoff_max_ms": 600_000}


def test_batches_are_sent_with_the_id_that_the_cluster_gives(fake: FakeBroker) -> None:
    with Rig(fake.address, delivery=IDEMPOTENT) as rig:
        rig.know("t")
        for _ in range(2):
            assert rig.result(rig.send("t", 0, b"x")).code == 0
    headers = [decode_batch(data)[0] for _, _, data in fake.records()]
    assert [(h.producer_id, h.producer_epoch, h.base_sequence) for h in headers] == [(1000, 0, 0), (1000, 0, 1)]
    assert fake.count(INIT_PRODUCER_ID) == 1


def test_a_refusal_fails_every_batch_that_waits_and_says_what_to_do(fake: FakeBroker) -> None:
    fake.init_error = CLUSTER_AUTHORIZATION_FAILED
    with Rig(fake.address, delivery=IDEMPOTENT, settings=NEVER, start=False) as rig:
        sealed = [rig.send("t", n % 2, b"x") for n in range(6)]
        rig.start()
        results = [rig.result(index) for index in sealed]
        assert rig.outputs_are_free()
    assert {result.code for result in results} == {CLUSTER_AUTHORIZATION_FAILED}
    [text] = {result.text for result in results}
    assert text == (
        "CLUSTER_AUTHORIZATION_FAILED: no producer id; set enable_idempotence=False, "
        "or allow WRITE on a topic or IDEMPOTENT_WRITE on the cluster"
    )
    assert not any(result.retriable for result in results)
    assert fake.count(INIT_PRODUCER_ID) == 1
    assert fake.produced() == []


def test_after_a_refusal_the_cluster_is_asked_again_for_what_comes_later(fake: FakeBroker) -> None:
    fake.init_error = CLUSTER_AUTHORIZATION_FAILED
    with Rig(fake.address, delivery=IDEMPOTENT) as rig:
        rig.know("t")
        assert rig.result(rig.send("t", 0, b"x")).code == CLUSTER_AUTHORIZATION_FAILED
        fake.init_error = 0

        def is_delivered() -> bool:
            return rig.result(rig.send("t", 0, b"y")).code == 0

        rig.until(is_delivered, "the permission is noticed")


def test_where_one_broker_gives_no_answer_about_ids_another_does() -> None:
    with FakeBroker({"t": 1}) as fake, FakeBroker({"t": 1}) as other:
        fake.hooks[INIT_PRODUCER_ID] = lambda _: b""
        fake.more_brokers[2] = ("127.0.0.1", other.port)
        fake.leaders["t", 0] = 2
        with Rig(fake.address, delivery=IDEMPOTENT) as rig:
            rig.know("t")
            assert rig.result(rig.send("t", 0, b"x")).code == 0
        assert other.count(INIT_PRODUCER_ID) == 1


def test_a_refused_producer_that_sends_nothing_asks_nothing(fake: FakeBroker) -> None:
    fake.init_error = CLUSTER_AUTHORIZATION_FAILED
    quick = {"retry_backoff_ms": 1, "retry_backoff_max_ms": 1, "metadata_max_age_ms": 100}
    with Rig(fake.address, delivery=IDEMPOTENT, settings=quick) as rig:
        index = rig.want("t")
        rig.until(lambda: fake.count(INIT_PRODUCER_ID) > 0, "the cluster is asked")
        before = rig.topics.answer(index).answers
        rig.until(lambda: rig.topics.answer(index).answers >= before + 5, "five more turns with metadata")
        assert fake.count(INIT_PRODUCER_ID) == 1


def test_while_the_backoff_lasts_nobody_is_asked_and_batches_fail_at_once(fake: FakeBroker) -> None:
    fake.init_error = CLUSTER_AUTHORIZATION_FAILED
    with Rig(fake.address, delivery=IDEMPOTENT, settings=NEVER) as rig:
        rig.know("t")
        for _ in range(5):
            assert rig.result(rig.send("t", 0, b"x")).code == CLUSTER_AUTHORIZATION_FAILED
        assert fake.count(INIT_PRODUCER_ID) == 1


def test_without_any_backoff_a_refusal_fails_batches_all_the_same(fake: FakeBroker) -> None:
    fake.init_error = CLUSTER_AUTHORIZATION_FAILED
    none = {"retry_backoff_ms": 0, "retry_backoff_max_ms": 0}
    with Rig(fake.address, delivery=IDEMPOTENT, settings=none, start=False) as rig:
        sealed = [rig.send("t", 0, b"x") for _ in range(3)]
        rig.start()
        assert [rig.result(index).code for index in sealed] == [CLUSTER_AUTHORIZATION_FAILED] * 3


def test_a_broker_without_producer_ids_says_so() -> None:
    with (
        FakeBroker({"t": 1}, versions={INIT_PRODUCER_ID: (0, -1)}) as fake,
        Rig(fake.address, delivery=IDEMPOTENT) as rig,
    ):
        rig.know("t")
        result = rig.result(rig.send("t", 0, b"x"))
        assert result.code == UNSUPPORTED_VERSION
        assert result.text == (
            "UNSUPPORTED_VERSION: no producer id; set enable_idempotence=False, or use Kafka 0.11 or newer: "
            f"{fake.address} has no InitProducerId"
        )
        fake.versions[INIT_PRODUCER_ID] = (0, 5)
        fake.cut()
        rig.until(lambda: rig.result(rig.send("t", 0, b"y")).code == 0, "the upgrade is noticed")


def test_a_batch_that_comes_long_after_a_refusal_is_refused_as_well() -> None:
    """No request is sent for it, so no response comes to begin the turn that fails it."""
    delivery = {**IDEMPOTENT, "delivery_timeout_ms": 3_600_000}
    with (
        FakeBroker({"t": 1}, versions={INIT_PRODUCER_ID: (0, -1)}) as fake,
        Rig(fake.address, delivery=delivery) as rig,
    ):
        rig.know("t")
        for value in (b"x", b"y", b"z"):
            assert rig.result(rig.send("t", 0, value)).code == UNSUPPORTED_VERSION
            time.sleep(0.5)  # not a wait for a state: the time of a refusal must have passed


def test_what_waits_for_an_id_says_so_when_its_time_is_over(fake: FakeBroker) -> None:
    fake.init_error = COORDINATOR_LOAD_IN_PROGRESS
    with Rig(fake.address, delivery={**IDEMPOTENT, "delivery_timeout_ms": 200}) as rig:
        rig.know("t")
        result = rig.result(rig.send("t", 0, b"x"))
        assert result.text.endswith("no producer id: COORDINATOR_LOAD_IN_PROGRESS")
        fake.init_error = 0
        rig.until(lambda: rig.result(rig.send("t", 0, b"y")).code == 0, "the load has ended")


def test_every_batch_for_a_broker_that_cannot_take_them_fails() -> None:
    """Also those behind the first of their topic-partition."""
    with FakeBroker({"t": 1}, versions={PRODUCE: (14, 20)}) as fake, Rig(fake.address, start=False) as rig:
        sealed = [rig.send("t", 0, b"x") for _ in range(4)]
        rig.start()
        assert all(rig.result(index).text.startswith("PROTOCOL_ERROR: broker 1") for index in sealed)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TOPIC_AUTHORIZATION_FAILED, "TOPIC_AUTHORIZATION_FAILED: no permission to write to the topic"),
        (
            CLUSTER_AUTHORIZATION_FAILED,
            "CLUSTER_AUTHORIZATION_FAILED: no IDEMPOTENT_WRITE on the cluster; enable_idempotence=False goes without",
        ),
    ],
)
def test_a_missing_permission_to_write_is_final_until_it_is_given(fake: FakeBroker, error: int, text: str) -> None:
    fake.on_produce = lambda _topic, _partition: PartitionAnswer(error)
    with Rig(fake.address, delivery=IDEMPOTENT) as rig:
        rig.know("t")
        result = rig.result(rig.send("t", 0, b"x"))
        assert (result.code, result.text, result.retriable) == (error, text, False)
        fake.on_produce = lambda _topic, _partition: PartitionAnswer()
        assert rig.result(rig.send("t", 0, b"y")).code == 0
