"""What a batch's fate means: is it tried again, is metadata stale, and the words that the user will read.

Texts are cut at the end (layout.TEXT_BYTES), so they begin with what matters most.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from slabpress.network.messages import error_name, is_retriable
from slabpress.network.wire import ProduceResult
from slabpress.results import DELIVERED, EXPIRED_SENT, EXPIRED_UNSENT, LOCAL_NAMES, PROTOCOL

MESSAGE_TOO_LARGE: Final = 10
RECORD_LIST_TOO_LARGE: Final = 18
DUPLICATE_SEQUENCE_NUMBER: Final = 46
UNSUPPORTED_COMPRESSION_TYPE: Final = 76

# The errors that Java calls InvalidMetadataException, or that a new leader heals: UNKNOWN_TOPIC_OR_PARTITION,
# LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REPLICA_NOT_AVAILABLE, KAFKA_STORAGE_ERROR,
# FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID.
STALE_METADATA: Final = frozenset({3, 5, 6, 9, 56, 74, 75, 100, 103})

_EXPLANATIONS: Final = {
    -1: "the broker met an unexpected error; its log says more",
    2: "the broker found the batch corrupt",
    3: "the broker does not host this topic-partition",
    17: "the topic is internal or its name is not valid",
    19: "fewer replicas are in sync than min.insync.replicas asks for",
    21: "the broker does not accept this value of acks",
    29: "no permission to write to the topic",
    # Kafka before 2.8 asks for it with every Produce request of an idempotent producer (KIP-679).
    31: "no IDEMPOTENT_WRITE on the cluster; enable_idempotence=False goes without",
    32: "the timestamp is outside what the topic accepts",
    44: "the topic's policy refused it",
    87: "the broker refused a record",
}


class Outcome(NamedTuple):
    """What became of a batch. ``record_index`` and ``base_offset`` are -1 where there is none."""

    code: int
    text: str = ""
    retriable: bool = False
    record_index: int = -1
    base_offset: int = -1
    append_time_ms: int = -1


def is_delivered(result: ProduceResult) -> bool:
    """Whether the batch is in the log. Once from an earlier try is as good (the broker saw its sequence)."""
    return result.error in (DELIVERED, DUPLICATE_SEQUENCE_NUMBER)


# OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID (of brokers before 2.5), PRODUCER_FENCED.
_OUT_OF_STEP: Final = frozenset({45, 47, 59, 90})


def is_out_of_step(result: ProduceResult) -> bool:
    """Whether the batch's sequence is not the next that the broker expects."""
    return result.error in _OUT_OF_STEP


def may_split(result: ProduceResult) -> bool:
    """Whether the broker took the batch's size amiss: fewer records at once may be accepted."""
    return result.error in (MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE)


def may_retry(result: ProduceResult) -> bool:
    """Whether the same bytes may be accepted later."""
    return is_retriable(result.error)


def delivered(result: ProduceResult) -> Outcome:
    """The outcome of a batch that the broker appended."""
    return Outcome(DELIVERED, "", False, -1, result.base_offset, result.append_time_ms)  # noqa: FBT003


def refused(result: ProduceResult, batch_bytes: int, records: int) -> Outcome:
    """The outcome of a batch that the broker will never append: "NAME: explanation"."""
    name = error_name(result.error)
    record_index = -1
    if result.error in (MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE):
        limit = "max.message.bytes" if result.error == MESSAGE_TOO_LARGE else "segment.bytes"
        what = "a single record makes a batch" if records == 1 else f"{records} records make a batch"
        text = f"{name}: {what} of {batch_bytes} bytes, over the topic's {limit}"
    elif result.record_errors:
        record_index, words = result.record_errors[0]
        more = f" and {len(result.record_errors) - 1} more" if len(result.record_errors) > 1 else ""
        words = words or result.error_message or _EXPLANATIONS.get(result.error, "refused")
        text = f"{name}: record {record_index}{more} of {records}: {words}"
    else:
        text = f"{name}: {result.error_message or _EXPLANATIONS.get(result.error, 'refused by the broker')}"
    return Outcome(result.error, text, is_retriable(result.error), record_index)


def expired(attempts: int, timeout_ms: int, why: str) -> Outcome:
    """The outcome of a batch whose delivery timeout ended. After a try it may be in the log all the same."""
    code = EXPIRED_SENT if attempts else EXPIRED_UNSENT
    tried = (
        f"not acknowledged within {timeout_ms} ms, {attempts} tries" if attempts else f"not sent within {timeout_ms} ms"
    )
    return Outcome(code, f"{LOCAL_NAMES[code]}: {tried}; {why}", retriable=True)


def unsupported_zstd(version: int) -> Outcome:
    """The outcome of a zstd batch for a broker that is too old for it (KIP-110)."""
    name = error_name(UNSUPPORTED_COMPRESSION_TYPE)
    return Outcome(
        UNSUPPORTED_COMPRESSION_TYPE, f"{name}: zstd needs Produce v7 (Kafka 2.1), the broker has v{version}"
    )


def no_producer_id(error: int, remedy: str) -> Outcome:
    """The outcome of an idempotent producer's batches where the cluster gives no producer id."""
    return Outcome(error, f"{error_name(error)}: no producer id; set enable_idempotence=False, or {remedy}")


def no_common_version(node: int) -> Outcome:
    """The outcome of a batch for a broker that speaks no Produce version of ours."""
    return Outcome(PROTOCOL, f"{LOCAL_NAMES[PROTOCOL]}: broker {node} speaks no Produce version from 3 to 13")
