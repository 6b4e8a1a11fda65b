"""Codec alone, and the load beside it: ``python -m bench.scaling_alone codec|load JSON``; prints one JSON line.

A codec process compresses, with the very calls of a worker, the same batches as slabpress writes them, each lying in
one piece, into one buffer that is there already. A load process uses a share of a CPU and does nothing with it.
Each says "ready", and begins when it is told to by a line on its standard input.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, NamedTuple

from bench.data import RECORD_BYTES, json_lines
from bench.scaling_side import Job, codec_settings
from bench.sealed import sealed_batches
from slabpress.workers.codecs import Codec, make_codec

_BYTES: Final = 16 << 20  # more than the caches hold, as an arena's slabs are
_SLICE_S: Final = 0.001


class Load(NamedTuple):
    """How much of a CPU a load process uses, and for how long."""

    duty: float
    seconds: float


def batches_of(batch_bytes: int, codec: str) -> list[bytes]:
    """Uncompressed batches of JSON records, as slabpress seals them."""
    return sealed_batches(json_lines(_BYTES // RECORD_BYTES), _BYTES, batch_size=batch_bytes, **codec_settings(codec))


def compress(job: Job) -> dict[str, float]:
    """Compress the batches over and over."""
    batches = [memoryview(batch) for batch in batches_of(job.batch_bytes, job.codec)]
    largest = max(map(len, batches))
    settings = codec_settings(job.codec)
    codec = make_codec(settings["compression_type"], settings["compression_level"], largest)
    out = memoryview(bytearray(largest))
    _compress_one(codec, batches[0], out)
    _wait_for_word()
    done = number = 0
    start, cpu = time.perf_counter(), time.process_time()
    end = start + job.seconds
    while time.perf_counter() < end:
        batch = batches[number % len(batches)]
        _compress_one(codec, batch, out)
        done += len(batch)
        number += 1
    took = time.perf_counter() - start
    return {"bytes_per_s": done / took, "cpu_s_per_gb": (time.process_time() - cpu) / done * 1e9}


def _compress_one(codec: Codec, batch: memoryview, out: memoryview) -> None:
    if len(batch) > codec.whole_bytes:
        codec.compress([batch], len(batch), [out])
        return
    payload = codec.whole(batch)
    if len(payload) < len(batch):
        out[: len(payload)] = payload


def use_cpu(load: Load) -> dict[str, float]:
    """Use so much of a CPU, a slice of a millisecond at a time; what it was kept from it makes up for."""
    _wait_for_word()
    start, cpu = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < load.seconds:
        if time.process_time() - cpu >= load.duty * passed:
            time.sleep(_SLICE_S * (1 - load.duty) + 1e-5)
            continue
        stop = time.process_time() + _SLICE_S * load.duty
        while time.process_time() < stop:
            pass
    return {"cores": (time.process_time() - cpu) / (time.perf_counter() - start)}


def _wait_for_word() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main() -> None:
    """Play the part in ``argv[1]``."""
    fields: dict[str, Any] = json.loads(sys.argv[2])
    result = compress(Job(**fields)) if sys.argv[1] == "codec" else use_cpu(Load(**fields))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
