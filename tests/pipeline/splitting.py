"""A producer whose broker takes batches up to a size: real compressor and real batches, one thread of this process."""

from __future__ import annotations

from typing import Any, Final

from slabpress._native import DeliveryHandle
from slabpress.errors import DeliveryError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.watch import DoneCallback
from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.pipeline.instant import DeliveredBatch, InstantPipeline, Rig
from tests.support.limited_broker import HEADER_BYTES, LimitedBroker, Network

# Two records of 100 bytes fit, three do not, nor does one of 300.
LIMIT: Final = HEADER_BYTES + 260
_SOMETHING: Final = DeliveredBatch("", 0, 0, [])


class LimitedPipeline(InstantPipeline):
    """Worker, network process and broker of one arena; batches, or pieces of them, are sent one at a time.

    Attributes:
        broker: takes batches up to its limit.
        stop_after: nothing is sent any more once so many batches have come to the broker.
    """

    def __init__(self, arena: Arena, control: Control, topics: dict[str, int], limit: int, codec: str) -> None:
        super().__init__(arena, control, topics)
        self.broker = LimitedBroker(limit)
        self.network = Network(arena, self.broker)
        self.stop_after = 1 << 60
        self._worker = Compressor(arena, make_codec(codec, None, 1 << 20), 0, control)

    def deliver_one(self) -> DeliveredBatch | None:
        """Do one thing; None if there is nothing to do."""
        if self._worker.work():
            return _SOMETHING
        self.network.follow()
        for batch in self.network.heads():
            if len(self.broker.arrivals) < self.stop_after:
                self.network.answer(batch, self.network.send(batch))
                self.tell_of_results()
                return _SOMETHING
        return None


class LimitedRig(Rig):
    """``Rig`` with a LimitedPipeline."""

    pipeline: LimitedPipeline

    def __init__(
        self,
        limit: int,
        topics: dict[str, int] | None = None,
        on_delivery: DoneCallback | None = None,
        codec: str = "none",
        **settings: Any,
    ) -> None:
        topics = {"t": 1} if topics is None else topics
        super().__init__(topics, on_delivery, **({"linger_ms": 60_000} | settings))
        self.pipeline = LimitedPipeline(self.session.arena, self.coordinator.control, topics, limit, codec)
        self.thread.pipeline = self.pipeline
        self.broker = self.pipeline.broker

    def close(self, timeout: float = 0.0) -> None:
        """As ``Rig.close``."""
        if not self._closed:
            self.thread.stop()
            self.pipeline.network.end()
            super().close(timeout)


def flush_failing(rig: LimitedRig) -> int:
    """Flush; how many records it says were not delivered."""
    try:
        rig.flush()
    except DeliveryError as error:
        return error.records
    return 0


def check_counts(rig: LimitedRig, accepted: int, failed: int) -> None:
    """Everything has its result, is counted once, and was given back."""
    stats = rig.producer.stats()
    found = stats.records_accepted, stats.records_delivered, stats.records_failed, stats.records_pending
    assert found == (accepted, accepted - failed, failed, 0)
    assert (stats.network["records_delivered"], stats.network["records_failed"]) == (accepted - failed, failed)
    rig.check_all_free()


def resolved(handles: list[DeliveryHandle]) -> int:
    """How many records of their one batch have a result by now."""
    [batch] = {handle._batch for handle in handles}
    assert isinstance(batch, Batch)
    return batch.records_resolved
