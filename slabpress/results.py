"""Result codes of a batch that Kafka has no number for; Kafka's own are -1 and up.

The network process writes them into the descriptor, the coordinator makes errors of them.
"""

from __future__ import annotations

from typing import Final

DELIVERED: Final = 0
EXPIRED_UNSENT: Final = -1001
EXPIRED_SENT: Final = -1002
PROTOCOL: Final = -1003

LOCAL_NAMES: Final[dict[int, str]] = {
    EXPIRED_UNSENT: "DELIVERY_TIMEOUT",
    EXPIRED_SENT: "DELIVERY_TIMEOUT_AFTER_SEND",
    PROTOCOL: "PROTOCOL_ERROR",
}
