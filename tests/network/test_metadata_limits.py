"""Metadata that is as large as may be, and larger: what the network process takes, and what its user hears."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from slabpress import BootstrapError, Producer, footprints
from slabpress.network.wire import RESPONSE_MAX_BYTES
from tests.network.fake_broker import METADATA, PRODUCE, Asked, FakeBroker
from tests.network.metadata_frames import ID, large_frame
from tests.network.rig import Rig

TOO_LARGE = RESPONSE_MAX_BYTES + 1
REASON = (
    f"metadata of {TOO_LARGE} bytes, more than {RESPONSE_MAX_BYTES}: ask for fewer topics in one producer or pipeline"
)


class Oversized:
    """Makes a fake broker's metadata too large as soon as a topic is asked for.

    Attributes:
        times: when it was asked for, in seconds.
        off: whether it fits for once.
    """

    def __init__(self, fake: FakeBroker, topic: str) -> None:
        self._fake = fake
        self._topic = topic
        self.times: list[float] = []
        self.off = False
        fake.hooks[METADATA] = self._answer

    def _answer(self, asked: Asked) -> bytes:
        if self.off or all(topic.name != self._topic for topic in asked.body.topics):
            return self._fake.metadata(asked)
        self.times.append(time.monotonic())
        return struct.pack(">ii", TOO_LARGE, asked.correlation_id) + bytes(TOO_LARGE - 4)


def resident_bytes(pid: int, field: str) -> int:
    """A figure of /proc/PID/status: VmRSS is what it is now, VmHWM the most that it ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def test_the_plan_has_room_for_one_response() -> None:
    """The plan does not import what it plans for, so it has a constant of its own."""
    assert footprints.NETWORK_RESPONSE_BYTES == RESPONSE_MAX_BYTES


def test_the_largest_metadata_is_taken_within_its_own_size_and_8_bytes_a_partition() -> None:
    count = 99_000
    with (
        FakeBroker({"small": 1}, topic_ids={"t": ID}, versions={METADATA: (0, 12)}) as fake,
        Rig(fake.address) as rig,
    ):
        rig.know("small")
        rig.topics.unwant(0)
        before = resident_bytes(rig.pid, "VmRSS")
        fake.hooks[METADATA] = lambda asked: _sized(large_frame(count, asked.correlation_id, fake.port))
        index = rig.want("t")
        for times in range(3):
            rig.until(lambda times=times: rig.topics.answer(index).answers > times, "an answer")  # type: ignore[misc]
            rig.topics.request_refresh()
            rig.control.wake(1)
        assert rig.know("t") == count
        grown = resident_bytes(rig.pid, "VmHWM") - before
        # The frame, the leaders as they were and as they are now, and a little.
        assert grown < RESPONSE_MAX_BYTES + 2 * 8 * count + 1_000_000
        for partition in (0, count - 3):
            assert rig.result(rig.send("t", partition, b"x")).code == 0
    assert [partition for _, partition, _ in fake.records()] == [0, count - 3]


def _sized(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


def test_metadata_that_is_too_large_is_reported_until_it_fits_and_asked_for_with_growing_delays(
    fake: FakeBroker,
) -> None:
    oversized = Oversized(fake, "t")
    with Rig(fake.address, settings={"retry_backoff_ms": 40, "retry_backoff_max_ms": 320}) as rig:
        index = rig.want("t")
        rig.until(lambda: rig.arena.report() != "", "a report")
        # A new connection says nothing yet: the reason stays from one try to the next.
        seen = set()
        while len(oversized.times) < 6:
            seen.add(rig.arena.report())
            rig.until(lambda: True, "nothing")
        assert seen == {f"{fake.address}: {REASON}"}
        first, *_, last = oversized.times
        assert last - first > 0.8 * (0.04 + 0.08 + 0.16 + 0.32 + 0.32)
        assert fake.connections == len(oversized.times)
        assert rig.topics.answer(index).answers == 0
        oversized.off = True
        assert rig.know("t") == 4
        rig.until(lambda: rig.arena.report() == "", "the report to be empty")


def test_a_producer_says_why_a_topic_cannot_be_known(fake: FakeBroker) -> None:
    Oversized(fake, "t")
    with Producer(bootstrap_servers=fake.address, buffer_memory="8MiB", workers=1, max_block_ms=600) as producer:
        started = time.monotonic()
        with pytest.raises(BootstrapError) as error:
            producer.send("t", b"x")
        assert time.monotonic() - started < 10
    assert REASON in str(error.value)
    assert "max_block_ms=600" in str(error.value)
    assert fake.address in str(error.value)


def test_a_topic_too_much_harms_no_other(fake: FakeBroker) -> None:
    """What is known stays known, and is delivered to; the error names what is the matter."""
    fake.topics["u"] = 1
    Oversized(fake, "t")
    with Producer(bootstrap_servers=fake.address, buffer_memory="8MiB", workers=1, max_block_ms=600) as producer:
        assert producer.send("u", b"before").result(20).partition == 0
        with pytest.raises(BootstrapError, match="ask for fewer topics in one producer or pipeline"):
            producer.send("t", b"x")
        assert producer.send("u", b"after").result(20).partition == 0


def test_a_produce_response_that_is_too_large_is_told_in_the_end(fake: FakeBroker) -> None:
    fake.hooks[PRODUCE] = lambda asked: struct.pack(">ii", TOO_LARGE, asked.correlation_id)
    with Rig(fake.address, delivery={"delivery_timeout_ms": 400}) as rig:
        rig.know("t")
        assert f"a Produce response of {TOO_LARGE}" in rig.result(rig.send("t", 0, b"x")).text


def test_metadata_that_never_parses_is_reported_too(fake: FakeBroker) -> None:
    fake.hooks[METADATA] = lambda asked: _sized(struct.pack(">i", asked.correlation_id) + b"\xff" * 20)
    with Rig(fake.address) as rig:
        rig.want("t")
        rig.until(lambda: "metadata response v13 of 24 bytes" in rig.arena.report(), "a report")


def test_a_topic_with_an_error_that_nobody_knows_is_no_harm(fake: FakeBroker) -> None:
    """The number stands for the name."""

    def odd(asked: Asked) -> bytes:
        return fake.metadata(asked).replace(struct.pack(">h", 3) + b"\x05none", struct.pack(">h", 9999) + b"\x05none")

    with Rig(fake.address, delivery={"delivery_timeout_ms": 300}) as rig:
        index = rig.want("none")
        rig.until(lambda: rig.topics.answer(index).error_code == 3, "an answer")
        fake.hooks[METADATA] = odd
        rig.until(lambda: rig.topics.answer(index).error_code == 9999, "the odd error")
        assert "metadata says error 9999" in rig.result(rig.send("none", 0, b"x")).text


def test_a_broker_without_a_metadata_version_is_reported_and_not_stormed() -> None:
    with FakeBroker({"t": 1}, versions={METADATA: (14, 20)}) as fake:
        limits = {"retry_backoff_ms": 50, "retry_backoff_max_ms": 200, "reconnect_backoff_ms": 1}
        with Rig(fake.address, settings=limits) as rig:
            started = time.monotonic()
            rig.want("t")
            rig.until(lambda: fake.connections >= 5, "five tries")
            assert time.monotonic() - started > 0.8 * (0.05 + 0.1 + 0.2 + 0.2)
            assert rig.arena.report() == f"{fake.address}: speaks no Metadata version from 1 to 13"
