"""The program that librdkafka's mock cluster lives in, because it can abort the process it lives in.

`MockCluster` starts this file by its path: it must start without the package. It reads one JSON object per line from
stdin, ``{"op": name, "args": {...}}``, answers each with one line, ``{"ok": result}`` or ``{"error": text}``, and ends
when stdin does. It uses the librdkafka that came with confluent-kafka.
"""

import collections
import ctypes
import ctypes.util
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PRODUCER = 0


class MockClusterError(RuntimeError):
    """The mock cluster refused an order or has died."""


def _librdkafka() -> ctypes.CDLL:
    spec = importlib.util.find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise MockClusterError("confluent_kafka is not installed")
    beside = Path(spec.origin).parent.parent / "confluent_kafka.libs"
    bundled = sorted(beside.glob("librdkafka*.so*"))
    name = str(bundled[0]) if bundled else ctypes.util.find_library("rdkafka")
    if name is None:
        raise MockClusterError(f"librdkafka is neither in {beside.name} nor on the system")
    return ctypes.CDLL(name)


def _function(dll: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """The function of librdkafka that is `name` with `rd_kafka_` before it, with its types."""
    found = getattr(dll, f"rd_kafka_{name}")
    found.restype, found.argtypes = result, arguments
    return found


class _Server:
    """The mock cluster itself, in the process that it may abort."""

    def __init__(self, brokers: int) -> None:
        pointer, short, integer, size = ctypes.c_void_p, ctypes.c_int16, ctypes.c_int32, ctypes.c_size_t
        call = functools.partial(_function, _librdkafka())
        errors = ctypes.create_string_buffer(512)
        conf = call("conf_new", pointer)()
        conf_set = call("conf_set", ctypes.c_int, *[pointer, *[ctypes.c_char_p] * 3, size])
        conf_set(conf, b"log_level", b"2", errors, len(errors))
        new = call("new", pointer, ctypes.c_int, pointer, ctypes.c_char_p, size)
        self._handle = new(PRODUCER, conf, errors, len(errors))
        if not self._handle:
            raise MockClusterError(f"rd_kafka_new: {errors.value.decode()}")
        self._cluster = call("mock_cluster_new", pointer, pointer, ctypes.c_int)(self._handle, brokers)
        if not self._cluster:
            raise MockClusterError(f"rd_kafka_mock_cluster_new: no cluster of {brokers} brokers")

        self._bootstraps = call("mock_cluster_bootstraps", ctypes.c_char_p, pointer)
        self._error_name = call("err2str", ctypes.c_char_p, ctypes.c_int)
        self._topic_create = call(
            "mock_topic_create", ctypes.c_int, pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int
        )
        self._push = call("mock_push_request_errors_array", None, pointer, short, size, pointer)
        self._clear = call("mock_clear_request_errors", None, pointer, short)
        self._push_rtts = call("mock_broker_push_request_error_rtts", ctypes.c_int, pointer, integer, short, size)
        self._set_rtt = call("mock_broker_set_rtt", ctypes.c_int, pointer, integer, ctypes.c_int)
        self._set_down = call("mock_broker_set_down", ctypes.c_int, pointer, integer)
        self._set_up = call("mock_broker_set_up", ctypes.c_int, pointer, integer)
        self._set_leader = call("mock_partition_set_leader", ctypes.c_int, pointer, ctypes.c_char_p, integer, integer)
        self._set_apiversion = call("mock_set_apiversion", ctypes.c_int, pointer, short, short, short)
        self._track = call("mock_start_request_tracking", None, pointer)
        self._untrack = call("mock_stop_request_tracking", None, pointer)
        self._requests = call("mock_get_requests", ctypes.POINTER(pointer), pointer, ctypes.POINTER(size))
        self._request_broker = call("mock_request_id", integer, pointer)
        self._request_key = call("mock_request_api_key", short, pointer)
        self._free_requests = call("mock_request_destroy_array", None, ctypes.POINTER(pointer), size)

    def bootstrap(self) -> str:
        return str(self._bootstraps(self._cluster).decode())

    def create_topic(self, name: str, partitions: int, replication_factor: int) -> None:
        code = self._topic_create(self._cluster, name.encode(), partitions, replication_factor)
        self._check(code, f"topic {name}, {partitions} partitions")

    def push_request_errors(self, api_key: int, codes: list[int]) -> None:
        self._push(self._cluster, api_key, len(codes), (ctypes.c_int * len(codes))(*codes))

    def clear_request_errors(self, api_key: int) -> None:
        self._clear(self._cluster, api_key)

    def broker_push_request_error_rtts(self, broker: int, api_key: int, errors: list[list[int]]) -> None:
        flat = [ctypes.c_int(number) for pair in errors for number in pair]
        self._check(self._push_rtts(self._cluster, broker, api_key, len(errors), *flat), f"broker {broker}")

    def set_rtt(self, broker: int, rtt_ms: int) -> None:
        self._check(self._set_rtt(self._cluster, broker, rtt_ms), f"broker {broker}")

    def set_down(self, broker: int) -> None:
        self._check(self._set_down(self._cluster, broker), f"broker {broker}")

    def set_up(self, broker: int) -> None:
        self._check(self._set_up(self._cluster, broker), f"broker {broker}")

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        code = self._set_leader(self._cluster, topic.encode(), partition, broker)
        self._check(code, f"partition {partition} of {topic} to broker {broker}")

    def set_apiversion(self, api_key: int, min_version: int, max_version: int) -> None:
        code = self._set_apiversion(self._cluster, api_key, min_version, max_version)
        self._check(code, f"api key {api_key}")

    def start_request_tracking(self) -> None:
        self._track(self._cluster)

    def stop_request_tracking(self) -> None:
        self._untrack(self._cluster)

    def requests(self) -> list[tuple[int, int, int]]:
        count = ctypes.c_size_t()
        found = self._requests(self._cluster, ctypes.byref(count))
        seen = collections.Counter(
            (self._request_key(found[index]), self._request_broker(found[index])) for index in range(count.value)
        )
        if found:
            self._free_requests(found, count)
        return [(api_key, broker, times) for (api_key, broker), times in seen.items()]

    def _check(self, code: int, what: str) -> None:
        if code:
            raise MockClusterError(f"{what}: {self._error_name(code).decode()}")


OPERATIONS = (
    "create_topic",
    "push_request_errors",
    "clear_request_errors",
    "broker_push_request_error_rtts",
    "set_rtt",
    "set_down",
    "set_up",
    "set_leader",
    "set_apiversion",
    "start_request_tracking",
    "stop_request_tracking",
    "requests",
)


def _answer_to(server: _Server, line: bytes) -> dict[str, object]:
    order = json.loads(line)
    if order["op"] not in OPERATIONS:
        return {"error": f"unknown op {order['op']!r}"}
    operation: Callable[..., object] = getattr(server, order["op"])
    try:
        return {"ok": operation(**order.get("args", {}))}
    except (MockClusterError, TypeError, ctypes.ArgumentError) as error:
        return {"error": f"{order['op']}: {error}"}


def _say(stream: IO[bytes], answer: dict[str, object]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


def main() -> None:
    """Serves orders from stdin until it ends."""
    server = _Server(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    _say(sys.stdout.buffer, {"ok": server.bootstrap()})
    for line in sys.stdin.buffer:
        _say(sys.stdout.buffer, _answer_to(server, line))


if __name__ == "__main__":
    main()
