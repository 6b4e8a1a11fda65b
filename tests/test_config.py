"""Settings: what is accepted, and the words for what is not."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from slabpress.codec_memory import LEVELS
from slabpress.config import MAX_MILLISECONDS, SLAB_BYTES_MAX, CompressionType, Config
from slabpress.errors import ConfigError
from slabpress.shm.layout import WORKERS_MAX


def _refusal(servers: Any = "a:1", **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.of(servers, **settings)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_defaults_are_kafkas_but_for_the_documented_ones() -> None:
    config = Config.of("localhost:9092")
    assert config.bootstrap_servers == ["localhost:9092"]
    assert (config.acks, config.compression_type, config.compression_level) == (-1, "none", None)
    assert (config.linger_ms, config.max_block_ms) == (5, 60_000)
    assert (config.delivery_timeout_ms, config.request_timeout_ms) == (120_000, 30_000)
    assert (config.retry_backoff_ms, config.retry_backoff_max_ms) == (100, 1000)
    assert (config.reconnect_backoff_ms, config.reconnect_backoff_max_ms) == (50, 1000)
    assert config.max_in_flight_requests_per_connection == 5
    assert config.max_request_size == 1 << 20
    assert config.metadata_max_age_ms == 300_000
    assert config.metadata_recovery_strategy == "rebootstrap"
    assert config.metadata_recovery_rebootstrap_trigger_ms == 300_000
    assert config.connections_max_idle_ms == 540_000
    assert config.buffer_memory == 64 << 20
    assert (config.batch_size, config.workers, config.slab_size, config.max_topic_partitions) == (0, 0, 0, 0)


def test_a_config_cannot_be_changed() -> None:
    config: Any = Config.of("a:1")
    with pytest.raises(AttributeError):
        config.linger_ms = 7


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("linger", "linger_ms"),
        ("linger.ms", "linger_ms"),
        ("compression", "compression_type"),
        ("max.in.flight.requests.per.connection", "max_in_flight_requests_per_connection"),
        ("batchsize", "batch_size"),
        ("worker", "workers"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest_one(name: str, near: str) -> None:
    assert _refusal(**{name: 1}) == f"unknown setting {name!r}: did you mean {near}?"


def test_an_unknown_setting_like_none_is_answered_with_all_of_them() -> None:
    said = _refusal(zzzzzzzz=1)
    assert said == f"unknown setting 'zzzzzzzz': the settings are {', '.join(Config.__struct_fields__)}"


def test_servers_are_named_once() -> None:
    assert _refusal(bootstrap_servers="b:1") == "bootstrap_servers was given twice: it is the first argument"


# --- servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        ("a:1", ["a:1"]),
        (" a:1 , b.example.org:65535 ,", ["a:1", "b.example.org:65535"]),
        (["a:1", " b:2 "], ["a:1", "b:2"]),
        (("a:1",), ["a:1"]),
        ("[::1]:9092,[2001:db8::1]:1", ["[::1]:9092", "[2001:db8::1]:1"]),
        ("127.0.0.1:9092", ["127.0.0.1:9092"]),
    ],
)
def test_servers_may_be_a_string_or_a_list(servers: Any, expected: list[str]) -> None:
    assert Config.of(servers).bootstrap_servers == expected


@pytest.mark.parametrize("servers", ["", " , ", [], [" "]])
def test_no_server_is_refused(servers: Any) -> None:
    assert _refusal(servers) == "bootstrap_servers is empty: name at least one broker as host:port"


@pytest.mark.parametrize("entry", ["a", "a:", ":1", "a:0", "a:65536", "a:b", "a b:1", "::1:9092", "[::1]", "a:1:2"])
def test_a_server_without_host_or_port_is_named(entry: str) -> None:
    assert _refusal(["ok:1", entry]) == (
        f"bootstrap_servers: {entry!r} is not host:port with a port of 1..65535 (IPv6 as [::1]:9092)"
    )


@pytest.mark.parametrize("servers", [None, 9092, [9092], {"a": 1}, b"a:1"])
def test_servers_of_a_wrong_type_are_refused(servers: Any) -> None:
    expected = f"bootstrap_servers must be 'host:port,...' or a list of 'host:port', not {servers!r}"
    assert _refusal(servers) == expected


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [("all", -1), (-1, -1), ("-1", -1), (0, 0), ("0", 0), (1, 1), ("1", 1)])
def test_acks_in_kafkas_spellings(value: Any, expected: int) -> None:
    assert Config.of("a:1", acks=value).acks == expected


@pytest.mark.parametrize("value", [2, "some", True, None, 1.0, [1]])
def test_other_acks_are_refused(value: Any) -> None:
    assert _refusal(acks=value) == f"acks is {value!r}: it must be 0, 1 or 'all'"


_ROOM = {"request_timeout_ms": 1, "linger_ms": 0, "delivery_timeout_ms": MAX_MILLISECONDS}
_RANGES = {
    "linger_ms": (0, MAX_MILLISECONDS - 1),
    "max_block_ms": (0, MAX_MILLISECONDS),
    "delivery_timeout_ms": (1, MAX_MILLISECONDS),
    "request_timeout_ms": (1, MAX_MILLISECONDS),
    "retry_backoff_ms": (0, 1000),
    "retry_backoff_max_ms": (100, MAX_MILLISECONDS),
    "reconnect_backoff_ms": (0, 1000),
    "reconnect_backoff_max_ms": (50, MAX_MILLISECONDS),
    "max_in_flight_requests_per_connection": (1, 1000),
    "max_request_size": (1, 1 << 30),
    "metadata_max_age_ms": (100, MAX_MILLISECONDS),
    "metadata_recovery_rebootstrap_trigger_ms": (0, MAX_MILLISECONDS),
    "connections_max_idle_ms": (1000, MAX_MILLISECONDS),
    "socket_connection_setup_timeout_ms": (1, MAX_MILLISECONDS),
    "send_buffer_bytes": (-1, 1 << 30),
    "receive_buffer_bytes": (-1, 1 << 30),
    "planned_brokers": (1, 10_000),
    "workers": (0, WORKERS_MAX),
    "slab_size": (0, SLAB_BYTES_MAX),
    "max_topic_partitions": (0, 1 << 20),
    "exit_flush_ms": (0, MAX_MILLISECONDS),
    "batch_size": (0, 1 << 30),
    "buffer_memory": (1, None),
}
_OUTER = {  # where another setting, not the range, bounds what was tried above
    "linger_ms": (0, MAX_MILLISECONDS),
    "delivery_timeout_ms": (0, MAX_MILLISECONDS),
    "retry_backoff_ms": (0, MAX_MILLISECONDS),
    "retry_backoff_max_ms": (0, MAX_MILLISECONDS),
    "reconnect_backoff_ms": (0, MAX_MILLISECONDS),
    "reconnect_backoff_max_ms": (0, MAX_MILLISECONDS),
}


def test_the_recovery_of_metadata_is_one_of_kafkas_two() -> None:
    assert Config.of("a:1", metadata_recovery_strategy="none").metadata_recovery_strategy == "none"
    for value in ("REBOOTSTRAP", None, 3):
        expected = f"metadata_recovery_strategy is {value!r}: it must be rebootstrap or none"
        assert _refusal(metadata_recovery_strategy=value) == expected


def test_every_numeric_setting_has_its_range_tested() -> None:
    numeric = {
        field.name
        for field in msgspec.structs.fields(Config)
        if type(field.default) is int and field.name not in ("acks", "compression_level")
    }
    assert numeric == _RANGES.keys()


@pytest.mark.parametrize("name", _RANGES)
def test_both_ends_of_a_range_are_accepted(name: str) -> None:
    low, high = _RANGES[name]
    for value in (low, high):
        if value is not None:
            room = {"buffer_memory": 4 << 30} if name == "batch_size" else {}
            settings = {key: limit for key, limit in _ROOM.items() if key != name}
            settings["delivery_timeout_ms"] = MAX_MILLISECONDS
            if name == "request_timeout_ms":
                value = min(value, MAX_MILLISECONDS)
            settings[name] = value
            assert getattr(Config.of("a:1", **settings, **room), name) == value


@pytest.mark.parametrize("name", _RANGES)
def test_beyond_the_ends_of_a_range_the_value_and_the_limit_are_told(name: str) -> None:
    low, high = _OUTER.get(name, _RANGES[name])
    assert low is not None
    assert _refusal(**{name: low - 1}) == f"{name} is {low - 1}: expected `int` >= {low}"
    if high is not None:
        assert _refusal(**{name: high + 1}) == f"{name} is {high + 1}: expected `int` <= {high}"


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("value", [1.5, True, None, [1]])
def test_a_number_of_a_wrong_type_is_refused(name: str, value: Any) -> None:
    assert _refusal(**{name: value}).startswith(f"{name} is {value!r}: expected `int`, got ")


@pytest.mark.parametrize(
    "name",
    ["buffer_memory", "batch_size", "max_request_size", "slab_size", "send_buffer_bytes", "receive_buffer_bytes"],
)
def test_sizes_may_be_words(name: str) -> None:
    assert getattr(Config.of("a:1", **{name: "64 KiB"}), name) == 65536
    assert _refusal(**{name: "much"}) == (
        f"{name}: 'much' is not a size: write a number of bytes, or one with KiB, MiB or GiB"
    )


def test_times_may_not_be_words() -> None:
    assert _refusal(linger_ms="5") == "linger_ms is '5': expected `int`, got `str`"


def test_workers_may_be_automatic() -> None:
    assert Config.of("a:1", workers="auto").workers == 0
    assert _refusal(workers="many") == "workers is 'many': expected `int`, got `str`"


def test_every_compression_type_is_accepted_and_no_other() -> None:
    assert set(get_args(CompressionType)) == LEVELS.keys()
    for kind in get_args(CompressionType):
        assert Config.of("a:1", compression_type=kind).compression_type == kind
    for other in ("brotli", "GZIP", ""):
        expected = f"compression_type is {other!r}: it must be none, gzip, snappy, lz4 or zstd"
        assert _refusal(compression_type=other) == expected


def test_a_client_id_is_text_of_kafkas_length() -> None:
    assert Config.of("a:1", client_id="x" * 249).client_id == "x" * 249
    long = "x" * 250
    assert _refusal(client_id=long) == f"client_id is {long!r}: expected `str` of length <= 249"
    assert _refusal(client_id=3) == "client_id is 3: expected `str`, got `int`"


# --- contradictions -----------------------------------------------------------------------------------------


def test_delivery_must_have_time_for_linger_and_a_request() -> None:
    assert Config.of("a:1", delivery_timeout_ms=30_005).delivery_timeout_ms == 30_005
    assert _refusal(delivery_timeout_ms=30_004) == (
        "delivery_timeout_ms is 30004, less than linger_ms + request_timeout_ms = 5 + 30000 = 30005: raise it or "
        "lower one of the others"
    )


@pytest.mark.parametrize("kind", ["retry", "reconnect"])
def test_a_backoff_is_not_longer_than_its_longest(kind: str) -> None:
    low, high = f"{kind}_backoff_ms", f"{kind}_backoff_max_ms"
    assert _refusal(**{low: 1001}) == f"{low} is 1001, more than {high} = 1000: raise {high} as well"
    assert getattr(Config.of("a:1", **{low: 1001, high: 1001}), low) == 1001


@pytest.mark.parametrize("kind", ["none", "snappy"])
def test_a_codec_without_levels_takes_none(kind: str) -> None:
    assert _refusal(compression_type=kind, compression_level=3) == (
        f"compression_level is 3, but compression_type {kind!r} has no levels: leave it out"
    )
    assert Config.of("a:1", compression_type=kind, compression_level=None).compression_level is None


@pytest.mark.parametrize(
    ("kind", "low", "high", "default"), [("gzip", 1, 9, -1), ("lz4", 1, 17, 9), ("zstd", -131072, 22, 3)]
)
def test_levels_are_those_of_the_codec(kind: str, low: int, high: int, default: int) -> None:
    for level in (low, high, default):
        assert Config.of("a:1", compression_type=kind, compression_level=level).compression_level == level
    for level in (high + 1, low - 3):
        assert _refusal(compression_type=kind, compression_level=level) == (
            f"compression_level is {level}: {kind} has levels {low} .. {high} (default {default})"
        )


@pytest.mark.parametrize("size", [1, 64, 1023, 1025, 1024 + 32, (1 << 20) - 1])
def test_a_slab_is_large_enough_and_a_whole_number_of_cache_lines(size: int) -> None:
    assert _refusal(slab_size=size) == (f"slab_size is {size}: at least 1024, and a multiple of 64, or 0 for automatic")


def test_a_batch_is_at_most_a_quarter_of_the_arena() -> None:
    assert Config.of("a:1", buffer_memory="4MiB", batch_size="1MiB").batch_size == 1 << 20
    assert _refusal(buffer_memory="4MiB", batch_size=(1 << 20) + 512) == (
        "batch_size is 1.0 MiB, more than a quarter of buffer_memory = 4 MiB: lower it or raise buffer_memory"
    )
