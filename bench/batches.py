"""What one batch costs a worker: ``python -m bench.batches [--quick] [--json FILE]``.

Sealed batches of JSON records lie in an arena as a coordinator leaves them, and one worker's ``Compressor`` takes them
one after the other, in this process, without sockets or sleep. Beside it stand the codec of the workers on the same
slabs, and the codec's library alone: one call on the same bytes in one piece, with the same parameters, into memory of
its own choice. What a worker adds is admission, the codec's way through the slabs, and publishing.

System calls are counted by strace, where there is one, over a process that works on some batches and one that works on
more: the difference is what the additional ones cost. That is a worker which is never idle; one that finds nothing
to do adds a poll and a read for each time it sleeps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench.data import json_lines
from bench.report import spread, write_json
from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.layout import plan_geometry
from slabpress.shm.states import FREE, OUTPUT_FREE, READY
from slabpress.workers.codecs import Codec, make_codec
from slabpress.workers.compressor import Compressor
from tests.shm.kit import SealingCoordinator

KIB: Final = 1024
CODECS: Final[dict[str, tuple[str, int | None]]] = {
    "gzip": ("gzip", None),
    "snappy": ("snappy", None),
    "lz4": ("lz4", None),
    "zstd:3": ("zstd", 3),
    "zstd:9": ("zstd", 9),
}
SIZES: Final = (16 * KIB, 64 * KIB, 256 * KIB)
ARENA_BYTES: Final = 64 * KIB * KIB
SLAB_BYTES: Final = 32 * KIB  # of an arena of 64 MiB (plan.automatic_slab_bytes)
LARGEST_BATCH: Final = 256 * KIB
DISTINCT: Final = 20_000
DEADLINE_S: Final = 300


class Rig:
    """One arena, one codec, one worker, and everybody else's part in the life of a batch."""

    def __init__(self, codec: str) -> None:
        kind, level = CODECS[codec]
        self.arena = Arena.create(plan_geometry(ARENA_BYTES, SLAB_BYTES, 1, 4))
        self.control = Control.create(1)
        self.codec: Codec = make_codec(kind, level, LARGEST_BATCH)
        self.compressor = Compressor(self.arena, self.codec, 0, self.control)
        self._descriptors = Descriptors(self.arena)
        self._coordinator = SealingCoordinator(self.arena)
        self._lines = _cycle(json_lines(DISTINCT))

    def seal(self, batches: int, batch_bytes: int) -> list[int]:
        """Seal batches of so many bytes at most; their descriptors."""
        return [self._coordinator.seal_full(self._lines, batch_bytes, number % 4) for number in range(batches)]

    def work(self, batches: int) -> float:
        """Microseconds of CPU that the worker takes for so many batches."""
        work = self.compressor.work
        start, done = time.thread_time_ns(), 0
        while done < batches:
            done += work()
        return (time.thread_time_ns() - start) / 1000

    def deliver(self) -> None:
        """What the network process and the coordinator do to the batches that are READY."""
        for index in self.arena.batch_states.find_all(READY):
            self.arena.outputs.mark(self._descriptors.output(index).first_output, OUTPUT_FREE)
            self.arena.batch_states.store(index, FREE)

    def chunks(self, index: int) -> list[memoryview]:
        """The slabs of a sealed batch."""
        batch = self._descriptors.sealed(index)
        return self.arena.slabs.runs(batch.first_slab, batch.raw_bytes)

    def close(self) -> None:
        """Let go of the arena."""
        del self.compressor
        self.control.close()
        self.arena.close()


def _cycle(lines: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from lines


def codec_alone(rig: Rig, batches: list[int]) -> float:
    """Microseconds of CPU that the workers' codec takes for these batches, slabs in, buffers out."""
    jobs = [(rig.chunks(index), [memoryview(bytearray(LARGEST_BATCH))]) for index in batches]
    sizes = [sum(map(len, chunks)) for chunks, _ in jobs]
    start = time.thread_time_ns()
    for (chunks, out), size in zip(jobs, sizes, strict=True):
        rig.codec.compress(chunks, size, out)
    return (time.thread_time_ns() - start) / 1000


def library_alone(rig: Rig, codec: str, batches: list[int]) -> float:
    """Microseconds of CPU of the library itself."""
    compress = _library(codec)
    raw = [b"".join(rig.chunks(index)) for index in batches]
    start = time.thread_time_ns()
    for data in raw:
        compress(data)
    return (time.thread_time_ns() - start) / 1000


def _library(codec: str) -> Callable[[bytes], object]:
    import lz4.frame
    import zstandard
    from cramjam import snappy
    from zlib_ng import zlib_ng

    from slabpress.workers.zstd_levels import zstd_parameters

    if codec == "gzip":
        return lambda data: zlib_ng.compress(data, 5, 31)
    if codec == "snappy":
        return snappy.compress_raw
    if codec == "lz4":
        return lambda data: lz4.frame.compress(data, block_linked=False)
    parameters = zstd_parameters(CODECS[codec][1] or 3)
    return zstandard.ZstdCompressor(compression_params=parameters).compress


def run_once(codec: str, batch_bytes: int, batches: int) -> dict[str, float]:
    """Microseconds a batch of the worker, the codec and the library, on batches that are new to every cache."""
    rig = Rig(codec)
    try:
        sealed = rig.seal(batches, batch_bytes)
        library = library_alone(rig, codec, sealed)
        alone = codec_alone(rig, sealed)
        worker = rig.work(batches)
        rig.deliver()
        return {"worker": worker / batches, "codec": alone / batches, "library": library / batches}
    finally:
        rig.close()


def system_calls(codec: str, batch_bytes: int) -> dict[str, float] | None:
    """System calls a batch of a busy worker, by name; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    few, many = (_traced(strace, codec, batch_bytes, batches) for batches in (10, 60))
    return {name: (many[name] - few.get(name, 0)) / 50 for name in many if many[name] != few.get(name, 0)}


def _traced(strace: str, codec: str, batch_bytes: int, batches: int) -> dict[str, int]:
    with tempfile.NamedTemporaryFile("r") as found:
        job = [sys.executable, "-m", "bench.batches", "--only", codec, str(batch_bytes), str(batches)]
        subprocess.run([strace, "-f", "-o", found.name, *job], timeout=DEADLINE_S, check=True)
        lines = [line.split(maxsplit=1)[1] for line in found]
    # What is worked on was sealed before: between two system calls that nothing else makes.
    begin, end = (place for place, line in enumerate(lines) if line.startswith("getpgid("))
    calls: dict[str, int] = {}
    for line in lines[begin + 1 : end]:
        name = line.split("(")[0]
        calls[name] = calls.get(name, 0) + 1
    return calls


def work_only(codec: str, batch_bytes: int, batches: int) -> None:
    """Work on so many batches between two calls of getpgid, for strace."""
    import os

    rig = Rig(codec)
    rig.seal(batches, batch_bytes)
    os.getpgid(0)
    for _ in range(batches):
        rig.compressor.work()
    os.getpgid(0)
    rig.close()


def measure(megabytes: int, rounds: int, *, traced: bool) -> list[dict[str, Any]]:
    """Every codec and size, ``rounds`` times, one after the other in turn."""
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for codec in CODECS:
            for size in SIZES:
                batches = min(400, megabytes * KIB * KIB // size)
                samples.setdefault((codec, size), []).append(run_once(codec, size, batches))
    return [
        {
            "codec": codec,
            "batch_bytes": size,
            **{f"{side}_us": spread([run[side] for run in runs]) for side in runs[0]},
            "system_calls": system_calls(codec, size) if traced else None,
        }
        for (codec, size), runs in samples.items()
    ]


def table_of(rows: list[dict[str, Any]]) -> str:
    """The figures for people: medians of the rounds."""
    texts = [f"{'codec':7} {'KiB':>4} {'worker us':>10} {'codec us':>9} {'library us':>11} {'of it':>6}  system calls"]
    for row in rows:
        worker, codec, library = (row[f"{side}_us"]["median"] for side in ("worker", "codec", "library"))
        calls = ", ".join(f"{count:.2g} {name}" for name, count in (row["system_calls"] or {}).items())
        texts.append(
            f"{row['codec']:7} {row['batch_bytes'] // KIB:4} {worker:10.1f} {codec:9.1f} {library:11.1f} "
            f"{library / worker:6.0%}  {calls}"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer batches, three rounds, no system calls")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each codec and size")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", nargs=3, metavar=("CODEC", "BYTES", "BATCHES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        work_only(options.only[0], int(options.only[1]), int(options.only[2]))
        return
    megabytes, rounds = (4, 3) if options.quick else (8, options.rounds)
    rows = measure(megabytes, rounds, traced=not options.quick)
    print(f"JSON records of 200 bytes, one worker that is never idle; CPU time, medians of {rounds} interleaved rounds")
    print(table_of(rows))
    write_json(options.json, {"rows": json.loads(json.dumps(rows))})


if __name__ == "__main__":
    main()
