"""A short torment: every kind of fault, nothing lost, doubled or out of order, nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final

import pytest

from tests.crash.brokers import BROKERS, CONFIG
from tests.crash.driver import Driver, say_on_stdout
from tests.crash.report import report
from tests.support.brokers import require_kafka
from tests.support.kafka import KafkaCluster

SEED: Final = 3
SECONDS: Final = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Three brokers behind proxies."""
    require_kafka()
    with KafkaCluster(BROKERS, config=CONFIG, proxied=True) as made:
        yield made


@pytest.mark.kafka
@pytest.mark.timeout(1500)
def test_nothing_is_lost_doubled_or_reordered(cluster: KafkaCluster) -> None:
    outcome = Driver(cluster, SEED, SECONDS, say=say_on_stdout).run()
    told = report(outcome)
    assert outcome.is_clean, f"\n{told}\nthe jobs' files: {outcome.folder}"
    assert outcome.faults.total() >= 10, told
    assert sum(row.stored for row in outcome.findings.rows) > 1000, told
    shutil.rmtree(outcome.folder)
