"""One side of a comparison, in a process of its own: ``python -m bench.side JSON`` prints one JSON line.

Each side gets the same records in the same order, the same broker, acks=all and no idempotence, and otherwise
the settings that its documentation recommends for throughput. The clock runs from the first record until the
last acknowledgement; making the data, starting and the first metadata are outside of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from bench.data import json_lines

BLOCK = 1000
DISTINCT = 50_000
LINGER_MS = 5
# librdkafka's own advice for throughput: batches of up to a megabyte, and a queue that never is the limit.
CONFLUENT = {
    "linger.ms": LINGER_MS,
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
    "queue.buffering.max.messages": 2_000_000,
    "queue.buffering.max.kbytes": 1_048_576,
    "acks": "all",
}


class Job(NamedTuple):
    """What a side is asked to do."""

    side: str
    codec: str
    records: int
    bootstrap_servers: str
    topic: str


def _cpu_seconds() -> float:
    """CPU seconds of this process and its children, dead ones included."""
    me = psutil.Process()
    total = sum(me.cpu_times()[:4])
    for child in me.children(recursive=True):
        total += sum(child.cpu_times()[:2])
    return float(total)


def slabpress_side(job: Job, blocks: list[list[bytes]]) -> tuple[float, float]:
    """Seconds and CPU seconds of slabpress, one record or one block a call."""
    from slabpress import Producer

    with Producer(job.bootstrap_servers, compression_type=job.codec, linger_ms=LINGER_MS) as producer:
        producer.send(job.topic, b"first").result(30)
        many = job.side.endswith("send_many")
        cpu, start = _cpu_seconds(), time.perf_counter()
        for block in blocks:
            if many:
                producer.send_many(job.topic, block)
            else:
                send = producer.send
                for value in block:
                    send(job.topic, value)
        producer.flush()
        return time.perf_counter() - start, _cpu_seconds() - cpu


def confluent_side(job: Job, blocks: list[list[bytes]]) -> tuple[float, float]:
    """Seconds and CPU seconds of confluent-kafka, by produce() or produce_batch()."""
    from confluent_kafka import Producer

    settings = {"bootstrap.servers": job.bootstrap_servers, "compression.type": job.codec, **CONFLUENT}
    producer = Producer(settings)
    producer.produce(job.topic, b"first")
    producer.flush(30)
    batched = job.side.endswith("produce_batch")
    # The batch API takes dicts; making them is not counted, which favours it.
    messages = [[{"value": value} for value in block] for block in blocks] if batched else []
    cpu, start = _cpu_seconds(), time.perf_counter()
    for message_block in messages:
        _produce_batch(producer, job.topic, message_block)
    for block in [] if batched else blocks:
        _produce(producer, job.topic, block)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} records were not delivered")
    return time.perf_counter() - start, _cpu_seconds() - cpu


def _produce(producer: Any, topic: str, block: list[bytes]) -> None:
    for value in block:
        while True:
            try:
                producer.produce(topic, value)
                break
            except BufferError:
                producer.poll(0.01)
    producer.poll(0)


def _produce_batch(producer: Any, topic: str, block: list[dict[str, Any]]) -> None:
    waiting = block
    while waiting:
        producer.produce_batch(topic, waiting)
        waiting = [{"value": message["value"]} for message in waiting if "_error" in message]
        producer.poll(0.01 if waiting else 0)


SIDES: dict[str, Callable[[Job, list[list[bytes]]], tuple[float, float]]] = {
    "slabpress send": slabpress_side,
    "slabpress send_many": slabpress_side,
    "confluent produce": confluent_side,
    "confluent produce_batch": confluent_side,
}


def main() -> None:
    """Run the job in ``argv[1]``."""
    job = Job(**json.loads(sys.argv[1]))
    lines = json_lines(DISTINCT)
    blocks = [
        [lines[(start + place) % DISTINCT] for place in range(min(BLOCK, job.records - start))]
        for start in range(0, job.records, BLOCK)
    ]
    seconds, cpu_seconds = SIDES[job.side](job, blocks)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
