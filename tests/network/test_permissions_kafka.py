"""What a real Kafka with an authorizer refuses, and that a producer goes on once it is allowed.

Clients and the broker itself are User:ANONYMOUS here, so everything is allowed but what a test denies: a denial goes
before whatever allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from tests.network.rig import Rig
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import admin_client

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

CLUSTER_AUTHORIZATION_FAILED: Final = 31
TOPIC_AUTHORIZATION_FAILED: Final = 29
IDEMPOTENT: Final = {"enable_idempotence": True}
AUTHORIZER: Final = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
EVERY_TOPIC: Final = (ResourceType.TOPIC, "*")
# Kafka calls the cluster, as a resource, so.
CLUSTER: Final = (ResourceType.BROKER, "kafka-cluster")
Resource = tuple[ResourceType, str]


class Permissions:
    """What clients may do."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        for resource in (EVERY_TOPIC, CLUSTER):
            self._set(resource, AclOperation.ALL, AclPermissionType.ALLOW)

    def deny(self, resource: Resource, operation: AclOperation) -> None:
        self._set(resource, operation, AclPermissionType.DENY)

    def _set(self, resource: Resource, operation: AclOperation, permission: AclPermissionType) -> None:
        binding = AclBinding(*resource, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission)
        for done in self._client.create_acls([binding]).values():
            done.result(30)

    def allow_again(self, resource: Resource, operation: AclOperation) -> None:
        """Take a denial back."""
        denial = AclBindingFilter(
            *resource, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, AclPermissionType.DENY
        )
        for done in self._client.delete_acls([denial]).values():
            assert len(done.result(30)) == 1


@pytest.fixture(scope="module")
def guarded_kafka() -> Iterator[KafkaCluster]:
    """One broker with Kafka's own authorizer."""
    with KafkaCluster(1, config=AUTHORIZER) as made:
        yield made


@pytest.fixture(scope="module")
def permissions(guarded_kafka: KafkaCluster) -> Permissions:
    return Permissions(admin_client(guarded_kafka.bootstrap_servers))


def _sends_until(rig: Rig, topic: str, code: int) -> str:
    """Send until a batch ends so: the broker hears of changed permissions a moment later. The batch's text."""
    texts = []

    def ends_so() -> bool:
        result = rig.result(rig.send(topic, 0, b"x"))
        texts.append(result.text)
        return result.code == code

    rig.until(ends_so, f"a batch ends with {code}")
    return texts[-1]


def test_a_producer_without_any_permission_to_write_gets_no_id_until_it_has_one(
    guarded_kafka: KafkaCluster, permissions: Permissions, topic: str
) -> None:
    """Since Kafka 2.8 (KIP-679) that on a single topic is enough, without IDEMPOTENT_WRITE on the cluster."""
    guarded_kafka.create_topic(topic)
    permissions.deny(CLUSTER, AclOperation.IDEMPOTENT_WRITE)
    permissions.deny(EVERY_TOPIC, AclOperation.WRITE)
    try:
        # One after the other, until the broker knows of the denials.
        text = _refusal_of_new_producers(guarded_kafka, topic)
        with Rig(guarded_kafka.bootstrap_servers, delivery=IDEMPOTENT) as rig:
            rig.know(topic)
            assert _sends_until(rig, topic, CLUSTER_AUTHORIZATION_FAILED) == text
            permissions.allow_again(EVERY_TOPIC, AclOperation.WRITE)
            assert _sends_until(rig, topic, 0) == ""
    finally:
        permissions.allow_again(CLUSTER, AclOperation.IDEMPOTENT_WRITE)
    assert text == (
        "CLUSTER_AUTHORIZATION_FAILED: no producer id; set enable_idempotence=False, "
        "or allow WRITE on a topic or IDEMPOTENT_WRITE on the cluster"
    )


def _refusal_of_new_producers(cluster: KafkaCluster, topic: str) -> str:
    while True:
        with Rig(cluster.bootstrap_servers, delivery=IDEMPOTENT) as rig:
            rig.know(topic)
            result = rig.result(rig.send(topic, 0, b"x"))
            if result.code == CLUSTER_AUTHORIZATION_FAILED:
                return result.text


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_topic_that_may_not_be_written_fails_its_batches_and_no_others(
    guarded_kafka: KafkaCluster, permissions: Permissions, topic: str, idempotent: bool
) -> None:
    other = f"{topic}-other"
    for name in (topic, other):
        guarded_kafka.create_topic(name)
    resource = (ResourceType.TOPIC, topic)
    with Rig(guarded_kafka.bootstrap_servers, delivery={"enable_idempotence": idempotent}) as rig:
        for name in (topic, other):
            rig.know(name)
        before = rig.result(rig.send(topic, 0, b"x"))
        assert before.code == 0
        permissions.deny(resource, AclOperation.WRITE)
        text = _sends_until(rig, topic, TOPIC_AUTHORIZATION_FAILED)
        assert text == "TOPIC_AUTHORIZATION_FAILED: no permission to write to the topic"
        assert rig.result(rig.send(other, 0, b"y")).code == 0
        permissions.allow_again(resource, AclOperation.WRITE)
        _sends_until(rig, topic, 0)
        delivered = rig.counter("records_delivered")
    found = [len(list(read_back(guarded_kafka.bootstrap_servers, name, timeout_s=30))) for name in (topic, other)]
    assert sum(found) == delivered


def test_a_topic_that_may_not_be_seen_is_answered_so(
    guarded_kafka: KafkaCluster, permissions: Permissions, topic: str
) -> None:
    guarded_kafka.create_topic(topic)
    resource = (ResourceType.TOPIC, topic)
    permissions.deny(resource, AclOperation.DESCRIBE)
    with Rig(guarded_kafka.bootstrap_servers, settings={"metadata_max_age_ms": 100}) as rig:
        index = rig.want(topic)
        rig.until(_answers(rig, index, TOPIC_AUTHORIZATION_FAILED), "the topic is hidden")
        permissions.allow_again(resource, AclOperation.DESCRIBE)
        rig.until(_answers(rig, index, 0), "the topic is shown")
        assert rig.result(rig.send(topic, 0, b"x")).code == 0


def _answers(rig: Rig, index: int, error: int) -> Callable[[], bool]:
    def answered() -> bool:
        answer = rig.topics.answer(index)
        return answer.answers > 0 and answer.error_code == error

    return answered
