"""A worker dies with a batch in its hands: another compresses it, and nobody waits for what the dead one held."""

from __future__ import annotations

import signal
import time
from typing import Any, Final

import psutil
import pytest

from slabpress import BufferFullError, Producer
from slabpress.shm.admission import DEATHS_MAX
from tests.integration.conftest import MakeProducer
from tests.integration.deaths.records import check
from tests.integration.deaths.sending import Compressing, Stream, children_of, kill
from tests.integration.pipeline.looks import until
from tests.support.kafka import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

# One large batch of a text that the codec has work with: some tenths of a second.
LARGE: Final[dict[str, Any]] = {
    "workers": 2,
    "batch_size": "4MiB",
    "buffer_memory": "32MiB",
    "max_request_size": "8MiB",
    "linger_ms": 60_000,
}
RECORDS: Final = 3500
TEXT_BYTES: Final = 1100


@pytest.fixture(autouse=True)
def no_pause_after_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slabpress.pipeline.supervisor._BACKOFF_S", 0.0)


def codecs_of(kafka: KafkaCluster, topic: str) -> set[str]:
    return {batch.codec.lower() for batch in kafka.dump_log(topic, 0)}


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV], ids=["kill-9", "segfault"])
def test_a_worker_that_compresses_dies_by(
    kafka: KafkaCluster,
    topic: str,
    make_producer: MakeProducer,
    caplog: pytest.LogCaptureFixture,
    codec: str,
    death: signal.Signals,
) -> None:
    kafka.create_topic(topic, config={"max.message.bytes": str(8 << 20)})
    producer = make_producer(kafka.bootstrap_servers, compression_type=codec, compression_level=9, **LARGE)
    stream = Stream(producer, topic, text_bytes=TEXT_BYTES)
    stream.send(RECORDS)
    compressing = Compressing(producer)
    producer._session.seal_all()
    worker, deaths = compressing.wait()
    assert deaths == 0
    kill(producer, worker, death)
    producer.flush(60)
    assert check(kafka, topic, stream.accepted) == RECORDS
    assert f"{worker} was killed by signal {int(death)}" in caplog.text
    assert codecs_of(kafka, topic) == {codec}
    assert "uncompressed" not in caplog.text


def test_a_batch_that_kills_its_worker_again_and_again_is_sent_uncompressed_and_logged(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    kafka.create_topic(topic, config={"max.message.bytes": str(8 << 20)})
    producer = make_producer(kafka.bootstrap_servers, compression_type="gzip", compression_level=9, **LARGE)
    stream = Stream(producer, topic, text_bytes=TEXT_BYTES)
    stream.send(RECORDS)
    compressing = Compressing(producer)
    producer._session.seal_all()
    for number in range(DEATHS_MAX):
        worker, deaths = compressing.wait()
        assert deaths == number
        kill(producer, worker, signal.SIGSEGV)
    producer.flush(60)
    assert check(kafka, topic, stream.accepted) == RECORDS
    assert codecs_of(kafka, topic) == {"none"}
    words = f"2 workers in a row have died while they compressed the same batch ({RECORDS} records of topic '{topic}', "
    [said] = [record.getMessage() for record in caplog.records if "in a row" in record.getMessage()]
    assert said.startswith(words + "partition 0, ")
    assert said.endswith(
        "it is sent uncompressed. If nothing else kills them, try another compression_type than 'gzip'"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_dies_when_everything_waits_for_its_batch(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer, workers: int
) -> None:
    """It stops at the first batch; behind that, a tiny arena fills up to the last slab and output buffer."""
    kafka.create_topic(topic)
    settings: dict[str, Any] = {"buffer_memory": "512KiB", "linger_ms": 0, "max_block_ms": 2000, "workers": workers}
    producer = make_producer(kafka.bootstrap_servers, compression_type="gzip", compression_level=9, **settings)
    stream = Stream(producer, topic, text_bytes=TEXT_BYTES)
    with stream.running_until(BufferFullError):
        worker = stop_one_that_compresses(producer)
    slabs = producer.stats().slabs["free"]
    kill(producer, worker, signal.SIGKILL)
    until(lambda: producer.stats().slabs["free"] > slabs, "room")
    producer.flush(60)
    assert check(kafka, topic, stream.accepted) == stream.sent
    stats = producer.stats()
    assert stats.slabs["free"] == sum(stats.slabs.values())
    assert stats.output_buffers["free"] == sum(stats.output_buffers.values())


def stop_one_that_compresses(producer: Producer) -> str:
    """Stop a worker with a batch in its hands; which one it is."""
    compressing = Compressing(producer)
    while True:
        worker, _ = compressing.wait()
        process = psutil.Process(children_of(producer)[worker])
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if worker in compressing.batches():
            return worker
        process.resume()
