"""What each process takes beside the arena: ``python -m bench.footprint [--json FILE]``.

PSS (each page divided by the processes that share it) of every process of a producer, idle and after load, per
codec, with the arena's own pages left out: the figures behind the constants in slabpress/plan.py. The first
process of a kind carries what others share with it, so figures of a lone producer are the dearest ones.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import psutil

from bench.data import json_lines
from bench.report import write_json
from slabpress import Producer
from tests.support.mock_cluster import MockCluster

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
RECORDS = 400_000


def private_pss_bytes(pid: int) -> int:
    """PSS of a process without shared memory, which is the arena and the control block."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup}
    return figures["Pss"] - figures["Pss_Shmem"]


def measure(codec: str, servers: str, lines: list[bytes]) -> dict[str, int]:
    """Bytes of each process: what the producer added to this one, and all of each child."""
    before = private_pss_bytes(os.getpid())
    with Producer(servers, compression_type=codec, workers=2) as producer:
        producer.send("footprint", b"first").result(30)
        figures = {"coordinator idle": private_pss_bytes(os.getpid()) - before}
        children = {}
        for child in psutil.Process().children():
            module = next((part for part in child.cmdline() if part.startswith("slabpress.")), None)
            if module == "slabpress.network":
                children["network process"] = child.pid
            elif module == "slabpress.workers":
                children.setdefault("worker", child.pid)
        figures |= {f"{name} idle": private_pss_bytes(pid) for name, pid in children.items()}
        for start in range(0, RECORDS, len(lines)):
            producer.send_many("footprint", lines[: RECORDS - start])
        producer.flush()
        figures["coordinator loaded"] = private_pss_bytes(os.getpid()) - before
        figures |= {f"{name} loaded": private_pss_bytes(pid) for name, pid in children.items()}
    return figures


def main() -> None:
    """Measure every codec and print a table."""
    parser = argparse.ArgumentParser(description="memory of each process beside the arena")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    lines = json_lines(10_000)
    with MockCluster() as sink:
        sink.create_topic("footprint", 4)
        rows: list[dict[str, Any]] = [
            {"codec": codec} | measure(codec, sink.bootstrap_servers, lines) for codec in CODECS
        ]
    names = list(rows[0])[1:]
    print("MiB of PSS without the arena")
    print(f"{'codec':8}" + "".join(f"{name:>24}" for name in names))
    for row in rows:
        print(f"{row['codec']:8}" + "".join(f"{row[name] / 2**20:24.1f}" for name in names))
    write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
