"""What is done to the brokers: one at a time, and not before the cluster is in sync again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaException

from tests.crash import plan
from tests.crash.plan import Fault
from tests.crash.records import CODECS, PARTITIONS, topic_of
from tests.support.kafka import KafkaCluster
from tests.support.kafka_install import admin_client, elect_preferred, wait_until

BROKERS: Final = 3
# Two replicas must have what is acknowledged: then one broker at a time may be killed, and nothing is lost.
# Any single record fits into a batch of so many bytes, and the largest batches of every codec do not: they are split,
# uncompressed ones out of their slabs.
CONFIG: Final = {"min.insync.replicas": "2", "message.max.bytes": "40000"}
_SYNC_TIMEOUT_S: Final = 180.0


class BrokerTorments:
    """Harms the brokers.

    Args:
        cluster: three brokers behind proxies.
    """

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._client = admin_client(cluster.bootstrap_servers)
        self._topics = [topic_of(codec) for codec in range(len(CODECS))]
        self._ways: dict[str, Callable[[int, float], str]] = {
            plan.BROKER_KILL: self._kill,
            plan.BROKER_END: self._end,
            plan.BROKER_PAUSE: self._pause,
            plan.LEADER_MOVE: self._move_leaders,
        }

    def create_topics(self) -> None:
        """Create the topics that are not there yet."""
        there = self._client.list_topics(timeout=30).topics
        for topic in self._topics:
            if topic not in there:
                self._cluster.create_topic(topic, PARTITIONS, replication_factor=BROKERS)

    def do(self, fault: Fault) -> str:
        """Do a fault, and undo it; what was done. The cluster is in sync when this returns."""
        broker = self._cluster.broker_ids[int(fault.which * BROKERS)]
        done = self._ways[fault.kind](broker, fault.for_s)
        started = time.monotonic()
        self.await_sync()
        return f"{done}, in sync {time.monotonic() - started:.1f} s later"

    def _kill(self, broker: int, for_s: float) -> str:
        self._cluster.kill(broker)
        return self._start_again(broker, for_s)

    def _end(self, broker: int, for_s: float) -> str:
        self._cluster.stop(broker)
        return self._start_again(broker, for_s)

    def _start_again(self, broker: int, for_s: float) -> str:
        time.sleep(for_s)
        self._cluster.start(broker)
        return f"broker {broker} down for {for_s:.1f} s and the time of its start"

    def _pause(self, broker: int, for_s: float) -> str:
        self._cluster.pause(broker)
        try:
            time.sleep(for_s)
        finally:
            self._cluster.resume(broker)
        return f"broker {broker} paused for {for_s:.1f} s"

    def _move_leaders(self, _: int, __: float) -> str:
        # The preferred leaders lead again: every restart has taken some from them.
        moved = 0
        for topic in self._topics:
            for partition in range(PARTITIONS):
                elect_preferred(self._client, topic, partition)
                moved += 1
        return f"{moved} partitions have their preferred leader"

    def await_sync(self) -> None:
        """Wait until every partition has a leader and all its replicas."""
        wait_until(self._is_in_sync, "the cluster in sync again", _SYNC_TIMEOUT_S, every_s=0.3)

    def _is_in_sync(self) -> bool:
        try:
            topics = self._client.list_topics(timeout=5).topics
        except KafkaException:
            return False
        partitions = [part for topic in self._topics for part in topics[topic].partitions.values()]
        return all(part.leader >= 0 and len(part.isrs) == BROKERS for part in partitions)
