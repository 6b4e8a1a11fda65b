"""The whole pipeline under full load, in a process of its own: ``python -m bench.scaling_side JSON``.

It sends for ever from one thread, and says in one JSON line what went through in the middle of it: bytes compressed,
and the CPU of each process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, Final, NamedTuple

import psutil

from bench.data import json_lines
from bench.interference_side import BLOCK

WARM_UP_S: Final = 0.7
_DISTINCT: Final = 50_000
_WORKER: Final = "slabpress.workers"


class Job(NamedTuple):
    """What a run is asked to do. Sizes of 0 are slabpress's defaults; ``broker_pids`` are processes of the broker."""

    codec: str
    workers: int
    batch_bytes: int
    arena_bytes: int
    partitions: int
    seconds: float
    bootstrap_servers: str
    topic: str
    broker_pids: list[int]
    idempotent: bool = True


def codec_settings(codec: str) -> dict[str, Any]:
    """Settings for "zstd:3", "zstd" and the like."""
    kind, _, level = codec.partition(":")
    return {"compression_type": kind, "compression_level": int(level) if level else None}


def producer_settings(job: Job) -> dict[str, Any]:
    """The settings of a run's producer."""
    sizes = {"batch_size": job.batch_bytes, "buffer_memory": job.arena_bytes or 64 << 20}
    return {**codec_settings(job.codec), **sizes, "workers": job.workers, "enable_idempotence": job.idempotent}


class Moment(NamedTuple):
    """What had been done, and used, at one time."""

    at_s: float
    batches: int
    raw_bytes: int
    workers_cpu_s: float
    others_cpu_s: list[float]

    @classmethod
    def of(cls, producer: Any, workers: list[psutil.Process], others: list[psutil.Process]) -> Moment:
        """This moment."""
        counted = producer.stats().workers
        return cls(
            time.perf_counter(),
            sum(worker["batches"] for worker in counted),
            sum(worker["raw_bytes"] for worker in counted),
            sum(map(_cpu_s, workers)),
            list(map(_cpu_s, others)),
        )


def _cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def run(job: Job) -> dict[str, Any]:
    """Send for a while; what went through in the middle of it. ``other_duties`` has the cores of each other process."""
    from slabpress import Producer

    lines = json_lines(_DISTINCT)
    blocks = [lines[start : start + BLOCK] for start in range(0, _DISTINCT, BLOCK)]
    over = threading.Event()
    with Producer(job.bootstrap_servers, **producer_settings(job)) as producer:
        producer.send(job.topic, b"first").result(30)
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if _WORKER in child.cmdline()]
        others = [psutil.Process(pid) for pid in job.broker_pids]
        others += [psutil.Process(), *(child for child in children if child not in workers)]

        def feed() -> None:
            number = 0
            while not over.is_set():
                producer.send_many(job.topic, blocks[number % len(blocks)])
                number += 1

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            time.sleep(WARM_UP_S)
            first = Moment.of(producer, workers, others)
            time.sleep(job.seconds)
            last = Moment.of(producer, workers, others)
        finally:
            over.set()
            feeder.join()
        batch_bytes = producer.plan.batch_bytes
    took = last.at_s - first.at_s
    batches = last.batches - first.batches
    duties = [(after - before) / took for before, after in zip(first.others_cpu_s, last.others_cpu_s, strict=True)]
    return {
        "batch_bytes": batch_bytes,
        "bytes_per_s": (last.raw_bytes - first.raw_bytes) / took,
        "sealed_bytes": (last.raw_bytes - first.raw_bytes) / max(1, batches),
        "worker_cpu_s_per_gb": (last.workers_cpu_s - first.workers_cpu_s) / (last.raw_bytes - first.raw_bytes) * 1e9,
        "worker_cores": (last.workers_cpu_s - first.workers_cpu_s) / took,
        "other_cores": sum(duties),
        "other_duties": duties,
    }


def main() -> None:
    """Run the job in ``argv[1]``."""
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
