"""slabpress: a Kafka producer whose memory is one fixed block, decided before the first record.

    from slabpress import Producer

    with Producer("localhost:9092", compression_type="zstd", buffer_memory="64MiB") as producer:
        producer.send("clicks", b"value", key=b"user-1")

Names are loaded when they are first used: worker and network processes import this package too, and must not
pay for what only the user's process needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slabpress._native import DeliveryHandle
    from slabpress.config import Config
    from slabpress.errors import (
        BootstrapError,
        BufferFullError,
        CallbackFlushError,
        ConfigError,
        DeliveryError,
        DeliveryTimeoutError,
        FlushTimeoutError,
        ForkedError,
        MemoryShortError,
        ProcessError,
        ProducerClosedError,
        RecordError,
        RecordTooLargeError,
        RecordTypeError,
        RecordValueError,
        SlabpressError,
        TooManyTopicsError,
        TopicNameError,
        UnknownPartitionError,
        UnknownTopicError,
        UnsupportedPlatformError,
    )
    from slabpress.observe.statistics import MemoryFigure, Statistics
    from slabpress.pipeline.many_delivery import ManyDelivery
    from slabpress.pipeline.outcomes import Delivery
    from slabpress.plan import MemoryPlan, PipelinePlan, plan_memory
    from slabpress.processes import Pipeline
    from slabpress.producer import Producer

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "Delivery": "pipeline.outcomes",
    "DeliveryHandle": "_native",
    "ManyDelivery": "pipeline.many_delivery",
    "MemoryFigure": "observe.statistics",
    "MemoryPlan": "plan",
    "Pipeline": "processes",
    "PipelinePlan": "plan",
    "Producer": "producer",
    "Statistics": "observe.statistics",
    "plan_memory": "plan",
}

__all__ = [
    "BootstrapError",
    "BufferFullError",
    "CallbackFlushError",
    "Config",
    "ConfigError",
    "Delivery",
    "DeliveryError",
    "DeliveryHandle",
    "DeliveryTimeoutError",
    "FlushTimeoutError",
    "ForkedError",
    "ManyDelivery",
    "MemoryFigure",
    "MemoryPlan",
    "MemoryShortError",
    "Pipeline",
    "PipelinePlan",
    "ProcessError",
    "Producer",
    "ProducerClosedError",
    "RecordError",
    "RecordTooLargeError",
    "RecordTypeError",
    "RecordValueError",
    "SlabpressError",
    "Statistics",
    "TooManyTopicsError",
    "TopicNameError",
    "UnknownPartitionError",
    "UnknownTopicError",
    "UnsupportedPlatformError",
    "plan_memory",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'slabpress' has no attribute {name!r}")
    if name in ("Pipeline", "Producer"):
        # Before its modules are loaded: on other platforms their imports would fail, and say less.
        importlib.import_module("slabpress.platforms").check_platform()
    home = importlib.import_module(f"slabpress.{_HOMES.get(name, 'errors')}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
