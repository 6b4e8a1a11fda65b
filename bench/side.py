"""One side of the throughput comparison, in a process of its own: ``python -m bench.side JSON`` prints one JSON line.

The clock runs from the first record until the last acknowledgement. Making and reading the data, starting, the first
metadata and a warm-up are outside of it, and the data are no work for Python's garbage collector while it runs.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench import side_aiokafka, side_confluent, side_kafka_python, side_slabpress
from bench.job import Client, Job
from bench.kinds import go_round, read

SIDES: dict[str, Callable[[Job], Client]] = {
    "slabpress send": side_slabpress.Send,
    "slabpress send_many": side_slabpress.SendMany,
    "slabpress send_lines": side_slabpress.SendLines,
    "confluent produce": side_confluent.Produce,
    "confluent produce_batch": side_confluent.ProduceBatch,
    "kafka-python": side_kafka_python.Send,
    "aiokafka send_batch": side_aiokafka.SendBatch,
}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children, of those that have ended too."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        times = process.cpu_times()
        # What a process has waited for counts as its children's.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measure(client: Client, job: Job) -> dict[str, Any]:
    """Send everything once."""
    distinct = read(Path(job.data))
    first = client.prepare(go_round(distinct, 0, job.warm_up))
    body = client.prepare(go_round(distinct, job.warm_up, job.records))
    warmed = client.send(first)
    gc.collect()
    gc.freeze()
    cpu, start = cpu_seconds(), time.perf_counter()
    acknowledged = client.send(body)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "acknowledged": warmed + acknowledged,
        "settings": client.settings,
    }


def main() -> None:
    """Run the job in ``argv[1]``."""
    job = Job(**json.loads(sys.argv[1]))
    client = SIDES[job.side](job)
    try:
        result = measure(client, job)
    finally:
        client.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
