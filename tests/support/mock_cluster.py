"""librdkafka's mock cluster, in a process of its own (mock_server.py)."""

import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.mock_server import MockClusterError
from tests.support.ordered import Ordered

NO_LEADER = -1
_PROGRAM = Path(__file__).resolve().parent / "mock_server.py"


class MockCluster(Ordered):
    """A mock cluster of librdkafka on loopback.

    Topics appear with 4 partitions when first asked for. Injected errors come before the append, so
    nothing of a failed request is stored. It keeps only the last 5 MiB of each partition, does not
    check CRCs, and does not de-duplicate an idempotent producer that has no transactional id.

    Args:
        brokers: How many; their ids count from 1.

    Attributes:
        bootstrap_servers: where they are.
    """

    what = "the mock cluster"
    error = MockClusterError

    def __init__(self, brokers: int = 1) -> None:
        super().__init__([sys.executable, str(_PROGRAM), str(brokers)])
        self.bootstrap_servers: str = self.ready

    def create_topic(self, name: str, partitions: int = 1, replication_factor: int = 1) -> None:
        """Creates a topic."""
        self._order("create_topic", name=name, partitions=partitions, replication_factor=replication_factor)

    def push_request_errors(self, api_key: int, codes: Sequence[int]) -> None:
        """Answers the next requests of a kind with these codes, one each; -195 breaks the connection."""
        self._order("push_request_errors", api_key=api_key, codes=list(codes))

    def clear_request_errors(self, api_key: int) -> None:
        """Forgets what was pushed for all brokers and has not been used."""
        self._order("clear_request_errors", api_key=api_key)

    def broker_push_request_error_rtts(self, broker: int, api_key: int, errors: Sequence[tuple[int, int]]) -> None:
        """Answers the next requests of a kind to one broker with (code, milliseconds); code 0 is none."""
        pairs = [list(pair) for pair in errors]
        self._order("broker_push_request_error_rtts", broker=broker, api_key=api_key, errors=pairs)

    def set_rtt(self, broker: int, rtt_ms: int) -> None:
        """Makes a broker answer that much later."""
        self._order("set_rtt", broker=broker, rtt_ms=rtt_ms)

    def set_down(self, broker: int) -> None:
        """Breaks a broker's connections and refuses new ones; it leaves the metadata."""
        self._order("set_down", broker=broker)

    def set_up(self, broker: int) -> None:
        """Takes a broker back."""
        self._order("set_up", broker=broker)

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        """Makes a broker the leader of a partition; NO_LEADER for none."""
        self._order("set_leader", topic=topic, partition=partition, broker=broker)

    def set_apiversion(self, api_key: int, min_version: int, max_version: int) -> None:
        """Narrows the versions of a request that brokers tell of and take; -1, -1 hides the request."""
        self._order("set_apiversion", api_key=api_key, min_version=min_version, max_version=max_version)

    def start_request_tracking(self) -> None:
        """Forgets the requests counted so far and counts from now on."""
        self._order("start_request_tracking")

    def stop_request_tracking(self) -> None:
        """Counts no longer; what was counted is forgotten."""
        self._order("stop_request_tracking")

    def requests(self) -> collections.Counter[tuple[int, int]]:
        """How many requests have come, by (api key, broker)."""
        counted: collections.Counter[tuple[int, int]] = collections.Counter()
        for api_key, broker, count in self._order("requests"):
            counted[api_key, broker] = count
        return counted

    def _order(self, op: str, **args: object) -> Any:
        return self.order({"op": op, "args": args})
