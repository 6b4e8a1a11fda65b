"""The network process's settings, as the setup pipe brings them."""

from __future__ import annotations

from typing import Any, NamedTuple


class NetworkSettings(NamedTuple):
    """Kafka's names and meanings; times in ms. -1 leaves a socket's buffer to the system, idle connections open."""

    bootstrap_servers: list[str]
    client_id: str
    request_timeout_ms: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    reconnect_backoff_ms: int
    reconnect_backoff_max_ms: int
    max_in_flight_requests_per_connection: int
    metadata_max_age_ms: int
    metadata_recovery_strategy: str
    metadata_recovery_rebootstrap_trigger_ms: int
    socket_connection_setup_timeout_ms: int
    send_buffer_bytes: int
    receive_buffer_bytes: int
    connections_max_idle_ms: int
    orphan_drain: bool
    orphan_log: str

    @classmethod
    def of(cls, settings: dict[str, Any]) -> NetworkSettings:
        """Pick what is ours; settings of later handshake steps may be there too."""
        return cls(**{name: settings[name] for name in cls._fields})
