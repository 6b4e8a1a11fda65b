"""The broker is gone for a while, with a full arena: nothing is lost, and sending goes on.

``python -m tests.integration.deaths.outage --seconds 60`` is the same for a longer time, and tells how fast it went on.
"""

from __future__ import annotations

import pytest

from tests.integration.deaths.outage import suffer
from tests.support.kafka import KafkaCluster

SECONDS = 8.0


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_an_outage_with_a_full_arena(kafka_behind_proxy: KafkaCluster, topic: str) -> None:
    # Fewer records than a flood has: reading them back would take longer than the outage.
    outcome = suffer(kafka_behind_proxy, topic, SECONDS, before_s=1.0, after_s=1.5, pause_s=0.00002)
    assert outcome.counts[1:] == (0, 0, 0)
    assert outcome.counts.records > outcome.waiting > 0
    assert outcome.sent_while_full == 0
    assert outcome.back_s is not None
