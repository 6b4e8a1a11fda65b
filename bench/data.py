"""The data that every side sends, made or read once, before any clock runs."""

from __future__ import annotations

import json
import random

_PAGES = ("/", "/search", "/cart", "/checkout", "/account/orders", "/product", "/help/returns")
_AGENTS = ("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5)", "curl/8.6.0")
RECORD_BYTES = 200
_SEED = 6512


def json_lines(count: int) -> list[bytes]:
    """``count`` JSON records of exactly 200 bytes, as a web shop's event stream might have them."""
    rng = random.Random(_SEED)
    lines = []
    for number in range(count):
        event = {
            "ts": 1_790_000_000_000 + number * 37 + rng.randrange(37),
            "user": rng.randrange(2_000_000),
            "session": f"{rng.getrandbits(64):016x}",
            "page": rng.choice(_PAGES),
            "ms": rng.randrange(4000),
            "agent": rng.choice(_AGENTS),
        }
        line = json.dumps(event, separators=(",", ":"))[:-1] + ',"pad":"'
        lines.append((line + "x" * (RECORD_BYTES - len(line) - 2) + '"}').encode())
    return lines


def ratio(lines: list[bytes], codec: str) -> float:
    """How much smaller ``codec`` makes 256 KiB of these lines."""
    from slabpress.workers.codecs import make_codec  # not at import: bench.footprint weighs what is imported

    raw = b"".join(lines)[: 256 * 1024]
    if codec == "none":
        return 1.0
    out = bytearray(len(raw))
    return len(raw) / make_codec(codec, None, len(raw)).compress([memoryview(raw)], len(raw), [memoryview(out)])
