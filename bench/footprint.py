"""What each process takes beside the arena: ``python -m bench.footprint [--json FILE]``.

PSS (each page divided by the processes that share it) of every process of a producer, idle and after load, per
codec, with the arena's own pages left out: the figures behind the constants in slabpress/footprints.py. The first
process of a kind carries what others share with it, so figures of a lone producer are the dearest ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import json_lines
from bench.report import write_json

if TYPE_CHECKING:
    import psutil

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
RECORDS = 400_000


def private_pss_bytes(pid: int) -> int:
    """PSS of a process without shared memory, which is the arena and the control block."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup}
    return figures["Pss"] - figures["Pss_Shmem"]


def measure(codec: str, servers: str) -> dict[str, int]:
    """Bytes of each process: what slabpress added to this one, all of each child. Runs in a fresh interpreter."""
    lines = json_lines(10_000)
    import psutil

    before = private_pss_bytes(os.getpid())
    from slabpress import Producer

    with Producer(servers, compression_type=codec, workers=2) as producer:
        producer.send("footprint", b"first").result(30)
        pids = {"coordinator": os.getpid()} | _children(psutil.Process())
        figures = {f"{name} idle": private_pss_bytes(pid) for name, pid in pids.items()}
        for start in range(0, RECORDS, len(lines)):
            producer.send_many("footprint", lines[: RECORDS - start])
        producer.flush()
        figures |= {f"{name} loaded": private_pss_bytes(pid) for name, pid in pids.items()}
    return {name: value - before if name.startswith("coordinator") else value for name, value in figures.items()}


def _children(me: psutil.Process) -> dict[str, int]:
    """The network process and one of the workers."""
    names = {"slabpress.network": "network process", "slabpress.workers": "worker"}
    return {names[part]: child.pid for child in me.children() for part in child.cmdline() if part in names}


def main() -> None:
    """Measure every codec in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description="memory of each process beside the arena")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", nargs=2, metavar=("CODEC", "SERVERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    rows: list[dict[str, Any]] = []
    from tests.support.mock_cluster import MockCluster

    with MockCluster() as sink:
        sink.create_topic("footprint", 4)
        for codec in CODECS:
            command = [sys.executable, "-m", "bench.footprint", "--one", codec, sink.bootstrap_servers]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            rows.append({"codec": codec} | json.loads(done.stdout))
    names = list(rows[0])[1:]
    print("MiB of PSS without the arena; the coordinator's is what importing and using slabpress adds")
    print(f"{'codec':8}" + "".join(f"{name:>24}" for name in names))
    for row in rows:
        print(f"{row['codec']:8}" + "".join(f"{row[name] / 2**20:24.1f}" for name in names))
    write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
