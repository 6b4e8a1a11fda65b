"""What slabpress's zstd levels gain over the library's: ``python -m bench.levels [--quick] [--json FILE]``.

Records of several kinds are sealed in batches of several sizes, as slabpress does it. Each batch is compressed in one
call, by the library's level as it is and by slabpress's parameters for it (slabpress/workers/zstd_levels.py), the two
in turn, in one process on one core. The figures are CPU time and size; sizes are exact.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from zstandard import ZstdCompressionParameters, ZstdCompressor

from bench import kinds
from bench.report import spread, write_json
from bench.sealed import sealed_batches
from slabpress.workers.zstd_levels import OF_RECORDS, zstd_parameters

KINDS: Final = ("json-100", "json-200", "json-1k", "json-lines", "flights")
SIZES: Final = (16 << 10, 64 << 10, 256 << 10, 960 << 10)
_BYTES: Final = 6 << 20


class Case(NamedTuple):
    """One line of the table."""

    level: int
    kind: str
    batch_bytes: int


def library_parameters(level: int) -> ZstdCompressionParameters:
    """The library's own level, for the same kind of frame."""
    return ZstdCompressionParameters(compression_level=level, write_checksum=False, write_content_size=True)


def batches_of(kind: str, batch_bytes: int, value_bytes: int) -> list[bytes]:
    """Full batches of a kind of records, those of one topic-partition behind those of another."""
    values: list[bytes] = []
    made, left = kinds.make(kind).values, value_bytes
    for value in made:
        values.append(value)
        left -= len(value)
        if left <= 0:
            break
    sealed = sealed_batches(values, value_bytes, compression_type="zstd", batch_size=batch_bytes)
    return [batch for batch in sealed if len(batch) > 0.9 * batch_bytes]


def compress(parameters: ZstdCompressionParameters, batches: list[bytes]) -> tuple[float, int]:
    """CPU seconds, and bytes that came out."""
    compressor = ZstdCompressor(compression_params=parameters)
    compressor.compress(batches[0])
    start = time.process_time()
    size = sum(len(compressor.compress(batch)) for batch in batches)
    return time.process_time() - start, size


def compare(level: int, batches: list[bytes], rounds: int) -> dict[str, Any]:
    """One level, ours and the library's in turn."""
    raw_bytes = sum(map(len, batches))
    gains, speeds, sizes = [], [], (0, 0)
    for _ in range(rounds):
        library_s, library_bytes = compress(library_parameters(level), batches)
        ours_s, ours_bytes = compress(zstd_parameters(level), batches)
        gains.append(library_s / ours_s)
        speeds.append(raw_bytes / ours_s / 1e6)
        sizes = ours_bytes, library_bytes
    return {
        "gain": spread(gains),
        "mb_per_s": spread(speeds),
        "ratio": raw_bytes / sizes[0],
        "size": sizes[0] / sizes[1] - 1,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    texts = [
        f"{'level':>5} {'records':10} {'batch':>5} {'MB/s':>6} {'faster':>6} {'(min-max)':>11} {'ratio':>6} {'size':>6}"
    ]
    for row in rows:
        gain = row["gain"]
        bounds = f"({gain['min']:.2f}-{gain['max']:.2f})"
        texts.append(
            f"{row['level']:5} {row['kind']:10} {row['batch_bytes'] >> 10:4}K {row['mb_per_s']['median']:6.0f} "
            f"{gain['median']:6.2f} {bounds:>11} {row['ratio']:6.2f} {100 * row['size']:+5.1f}%"
        )
    return "\n".join(texts)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one round, levels 3 and 9, two sizes")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument("--levels", type=int, nargs="+", default=list(OF_RECORDS), help="zstd's levels")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="records")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    sizes: tuple[int, ...] = SIZES
    if options.quick:
        options.rounds, options.levels, sizes = 1, [3, 9], (SIZES[0], SIZES[-1])
    rows = []
    for kind in options.kinds:
        for batch_bytes in sizes:
            batches = batches_of(kind, batch_bytes, _BYTES)
            for level in options.levels:
                found = compare(level, batches, options.rounds)
                rows.append(Case(level, kind, batch_bytes)._asdict() | found)
    rows.sort(key=lambda row: (row["level"], row["batch_bytes"]))
    print(f"zstd's levels as slabpress has them, over the library's; medians of {options.rounds} interleaved rounds")
    print(table(rows))
    write_json(options.json, {"rows": rows, "rounds": options.rounds})


if __name__ == "__main__":
    main()
