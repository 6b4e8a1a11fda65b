"""Settings: names, defaults and meanings are Kafka's, with underscores; a few are ours.

``Config.of`` is the one entry: it converts, checks each value and then what values say together. msgspec's
constructor checks nothing by itself, so nobody calls it directly.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from slabpress.codec_memory import LEVELS
from slabpress.errors import ConfigError
from slabpress.shm.layout import WORKERS_MAX
from slabpress.units import format_bytes, parse_bytes

CompressionType = Literal["none", "gzip", "snappy", "lz4", "zstd"]
MetadataRecovery = Literal["none", "rebootstrap"]

_SIZES: Final = (
    "buffer_memory",
    "batch_size",
    "max_request_size",
    "slab_size",
    "send_buffer_bytes",
    "receive_buffer_bytes",
)
_ACKS: Final[dict[object, int]] = {"all": -1, "-1": -1, -1: -1, "0": 0, 0: 0, "1": 1, 1: 1}
_SERVER: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\s:\[\]]+)):(?P<port>\d{1,5})")
SLAB_BYTES_MIN: Final = 1024
SLAB_BYTES_MAX: Final = 1 << 20
# Nearly what brokers take by default (max.message.bytes, 1 MiB): the larger a batch, the less it costs everybody.
BATCH_BYTES_DEFAULT: Final = 960 * 1024
SLABS_PER_ARENA: Final = 2048
MAX_MILLISECONDS: Final = 2**31 - 1
# The settings of a set of processes; all others are each producer's own (`Pipeline`).
PIPELINE_SETTINGS: Final = (
    "bootstrap_servers",
    "client_id",
    "request_timeout_ms",
    "retry_backoff_ms",
    "retry_backoff_max_ms",
    "reconnect_backoff_ms",
    "reconnect_backoff_max_ms",
    "max_in_flight_requests_per_connection",
    "metadata_max_age_ms",
    "metadata_recovery_strategy",
    "metadata_recovery_rebootstrap_trigger_ms",
    "connections_max_idle_ms",
    "socket_connection_setup_timeout_ms",
    "send_buffer_bytes",
    "receive_buffer_bytes",
    "planned_brokers",
    "orphan_drain",
    "orphan_log",
    "workers",
)

Milliseconds = Annotated[int, Meta(ge=0, le=MAX_MILLISECONDS)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one producer, complete and checked. Sizes are bytes, times milliseconds."""

    bootstrap_servers: Annotated[
        list[str], Meta(min_length=1, description="Brokers to ask first, as host:port; any that answers will do.")
    ]
    client_id: Annotated[str, Meta(max_length=249, description="Named in the brokers' logs and quotas.")] = "slabpress"
    acks: Annotated[
        int,
        Meta(description="Who must have a batch: 0 nobody, 1 its leader, all (-1) every in-sync replica."),
    ] = -1
    enable_idempotence: Annotated[
        bool,
        Meta(
            description="The brokers recognize what is sent twice, and keep the order (KIP-98). Needs acks=all, and is "
            "off where acks is set to 0 or 1. Needs WRITE on a topic or IDEMPOTENT_WRITE on the cluster: batches "
            "fail without, and later ones ask again."
        ),
    ] = True
    compression_type: Annotated[
        CompressionType, Meta(description="none, gzip, snappy, lz4 or zstd; done by the worker processes.")
    ] = "none"
    compression_level: Annotated[
        int | None, Meta(description="The codec's level as in KIP-390; None is the codec's default.")
    ] = None
    batch_size: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 30,
            description="The largest batch, uncompressed; 0: 960 KiB, less in a small arena or with many workers.",
        ),
    ] = 0
    linger_ms: Annotated[Milliseconds, Meta(description="How long an open batch waits for more records.")] = 5
    buffer_memory: Annotated[
        int, Meta(ge=1, description="Bytes of the arena: every table, slab and output buffer of this producer.")
    ] = 64 * 1024 * 1024
    max_block_ms: Annotated[
        Milliseconds, Meta(description="How long send() waits for room or for a topic's metadata, then raises.")
    ] = 60_000
    delivery_timeout_ms: Annotated[
        Milliseconds,
        Meta(
            description="A batch that is not on the wire fails this long after its first record; one that is on "
            "the wire is resolved by its response or by request_timeout_ms."
        ),
    ] = 120_000
    request_timeout_ms: Annotated[
        int, Meta(ge=1, le=MAX_MILLISECONDS, description="An unanswered request closes its connection after this.")
    ] = 30_000
    retry_backoff_ms: Annotated[Milliseconds, Meta(description="Wait before the first retry; doubles (KIP-580).")] = 100
    retry_backoff_max_ms: Annotated[Milliseconds, Meta(description="The longest wait before a retry.")] = 1000
    reconnect_backoff_ms: Annotated[Milliseconds, Meta(description="Wait before the first reconnect; doubles.")] = 50
    reconnect_backoff_max_ms: Annotated[Milliseconds, Meta(description="The longest wait before a reconnect.")] = 1000
    max_in_flight_requests_per_connection: Annotated[
        int, Meta(ge=1, le=1000, description="Unanswered requests to one broker; order holds at any value.")
    ] = 5
    max_request_size: Annotated[
        int, Meta(ge=1, le=1 << 30, description="The largest record, encoded and uncompressed, and request.")
    ] = 1024 * 1024
    metadata_max_age_ms: Annotated[
        int, Meta(ge=100, le=MAX_MILLISECONDS, description="Leaders and partition counts are asked for again.")
    ] = 300_000
    metadata_recovery_strategy: Annotated[
        MetadataRecovery,
        Meta(
            description="Where every broker that is known has failed: rebootstrap asks bootstrap_servers again, their "
            "names looked up anew (KIP-899); none goes on with the known ones."
        ),
    ] = "rebootstrap"
    metadata_recovery_rebootstrap_trigger_ms: Annotated[
        Milliseconds,
        Meta(
            description="With rebootstrap: after this long without metadata that is wanted, the known brokers are "
            "given up, their connections too (KIP-1102)."
        ),
    ] = 300_000
    connections_max_idle_ms: Annotated[
        int, Meta(ge=1000, le=MAX_MILLISECONDS, description="An unused connection is closed after this.")
    ] = 540_000
    socket_connection_setup_timeout_ms: Annotated[
        int, Meta(ge=1, le=MAX_MILLISECONDS, description="How long one connection attempt may take.")
    ] = 10_000
    # Four times Kafka's: the kernel doubles it and takes a whole request at once, 11.5 M records/s instead of 7.3 M.
    send_buffer_bytes: Annotated[
        int, Meta(ge=-1, le=1 << 30, description="SO_SNDBUF of each connection; -1 leaves it to the system.")
    ] = 512 * 1024
    receive_buffer_bytes: Annotated[
        int, Meta(ge=-1, le=1 << 30, description="SO_RCVBUF of each connection; -1 leaves it to the system.")
    ] = 32 * 1024
    planned_brokers: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Connections that the plan counts; with more a warning is logged."),
    ] = 4
    orphan_drain: Annotated[
        bool,
        Meta(
            description="When the job is killed, the other processes deliver what send() had accepted, until "
            "delivery_timeout_ms, and end. False: they end at once."
        ),
    ] = True
    orphan_log: Annotated[
        str,
        Meta(description="Where they say, in one line, what became of it: 'syslog', a file's path, or '' for nowhere."),
    ] = "syslog"
    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=WORKERS_MAX,
            description="Compression processes; auto (0): the CPUs this process may use, 1 without compression.",
        ),
    ] = 0
    slab_size: Annotated[
        int,
        Meta(
            ge=0,
            le=SLAB_BYTES_MAX,
            description="Bytes of a slab and of an output buffer; 0: by buffer_memory and batch_size.",
        ),
    ] = 0
    max_topic_partitions: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="Topic-partitions the arena has room for; 0: by buffer_memory."),
    ] = 0
    exit_flush_ms: Annotated[
        Milliseconds, Meta(description="How long a producer that was not closed is flushed at interpreter exit.")
    ] = 10_000

    @classmethod
    def of(cls, bootstrap_servers: str | list[str], /, **settings: Any) -> Config:
        """Convert and check settings.

        Raises:
            ConfigError: a name is unknown, a value impossible, or two contradict each other.
        """
        check_names(settings, cls.__struct_fields__)
        values: dict[str, Any] = dict(settings)
        values["bootstrap_servers"] = _servers(bootstrap_servers)
        if "acks" in values:
            values["acks"] = _acks(values["acks"])
            # As Java's producer does it: who asks for fewer acks goes without, unless both are asked for.
            values.setdefault("enable_idempotence", values["acks"] == _ACKS["all"])
        if values.get("workers") == "auto":
            values["workers"] = 0
        if values.get("compression_type", "none") not in LEVELS:
            choices = ", ".join(list(LEVELS)[:-1]) + f" or {list(LEVELS)[-1]}"
            raise ConfigError(f"compression_type is {values['compression_type']!r}: it must be {choices}")
        if values.get("metadata_recovery_strategy", "none") not in get_args(MetadataRecovery):
            given = values["metadata_recovery_strategy"]
            raise ConfigError(f"metadata_recovery_strategy is {given!r}: it must be rebootstrap or none")
        for name in _SIZES:
            if name in values:
                values[name] = _size(name, values[name])
        config = _convert(cls, values)
        _check_together(config)
        return config


def check_names(settings: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise ConfigError for a setting that does not exist, or is not a setting here."""
    for name in settings:
        if name == "bootstrap_servers" and name in known:
            raise ConfigError("bootstrap_servers was given twice: it is the first argument")
        if name not in known:
            raise ConfigError(_unknown(name, known))


def _unknown(name: str, known: tuple[str, ...]) -> str:
    if name in Config.__struct_fields__:
        owner = (
            "the pipeline: pass it to Pipeline()"
            if name in PIPELINE_SETTINGS
            else "each producer: pass it to producer()"
        )
        return f"{name} is a setting of {owner}"
    near = difflib.get_close_matches(name.replace(".", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
    return f"unknown setting {name!r}: {hint}"


def _servers(servers: str | list[str]) -> list[str]:
    entries: object = servers.split(",") if isinstance(servers, str) else servers
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigError(f"bootstrap_servers must be 'host:port,...' or a list of 'host:port', not {servers!r}")
    found = [entry.strip() for entry in entries if entry.strip()]
    if not found:
        raise ConfigError("bootstrap_servers is empty: name at least one broker as host:port")
    for entry in found:
        match = _SERVER.fullmatch(entry)
        if match is None or not 1 <= int(match["port"]) <= 65535:
            raise ConfigError(
                f"bootstrap_servers: {entry!r} is not host:port with a port of 1..65535 (IPv6 as [::1]:9092)"
            )
    return found


def _acks(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int) or value not in _ACKS:
        raise ConfigError(f"acks is {value!r}: it must be 0, 1 or 'all'")
    return _ACKS[value]


def _size(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _convert(cls: type[Config], values: dict[str, Any]) -> Config:
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        name = re.split(r"[`\[]", path)[0] if path else ""
        if name in values:
            raise ConfigError(f"{name} is {values[name]!r}: {text[0].lower()}{text[1:]}") from error
        raise ConfigError(str(error)) from error


def _check_together(config: Config) -> None:
    """What single values cannot say: raise ConfigError where two settings contradict each other."""
    if config.enable_idempotence and config.acks != _ACKS["all"]:
        raise ConfigError(f"enable_idempotence needs acks=all, but acks is {config.acks}: leave one of them out")
    least = config.linger_ms + config.request_timeout_ms
    if config.delivery_timeout_ms < least:
        raise ConfigError(
            f"delivery_timeout_ms is {config.delivery_timeout_ms}, less than linger_ms + request_timeout_ms = "
            f"{config.linger_ms} + {config.request_timeout_ms} = {least}: raise it or lower one of the others"
        )
    for low, high in (
        ("retry_backoff_ms", "retry_backoff_max_ms"),
        ("reconnect_backoff_ms", "reconnect_backoff_max_ms"),
    ):
        if getattr(config, low) > getattr(config, high):
            raise ConfigError(
                f"{low} is {getattr(config, low)}, more than {high} = {getattr(config, high)}: raise {high} as well"
            )
    _check_level(config)
    if 0 < config.slab_size < SLAB_BYTES_MIN or config.slab_size % 64:
        raise ConfigError(
            f"slab_size is {config.slab_size}: at least {SLAB_BYTES_MIN}, and a multiple of 64, or 0 for automatic"
        )
    if config.batch_size and config.batch_size > config.buffer_memory // 4:
        raise ConfigError(
            f"batch_size is {format_bytes(config.batch_size)}, more than a quarter of buffer_memory = "
            f"{format_bytes(config.buffer_memory)}: lower it or raise buffer_memory"
        )


def _check_level(config: Config) -> None:
    if config.compression_level is None:
        return
    levels = LEVELS[config.compression_type]
    if levels is None:
        raise ConfigError(
            f"compression_level is {config.compression_level}, but compression_type {config.compression_type!r} "
            "has no levels: leave it out"
        )
    if config.compression_level != levels.default and not (
        levels.minimum <= config.compression_level <= levels.maximum
    ):
        raise ConfigError(
            f"compression_level is {config.compression_level}: {config.compression_type} has levels "
            f"{levels.minimum} .. {levels.maximum} (default {levels.default})"
        )
