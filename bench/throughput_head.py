"""What is told beside the figures of the throughput comparison, so that somebody else can judge and repeat them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import confluent_kafka

from bench import kinds, side_java
from bench.data import ratio
from bench.peers import Peer
from bench.points import Point

RATIO_CODECS = ("gzip", "snappy", "lz4", "zstd")


def describe_data(kind: str) -> dict[str, Any]:
    """A kind of records: how many distinct ones, how large, and how much 256 KiB of them shrink."""
    records = kinds.make(kind)
    sizes = [len(value) for value in records.values]
    return {
        "text": kinds.KINDS[kind],
        "distinct": len(sizes),
        "bytes": {"mean": sum(sizes) / len(sizes), "least": min(sizes), "most": max(sizes)},
        "key_bytes_mean": sum(len(key) for key in records.keys if key is not None) / len(sizes),
        "ratios": {codec: round(ratio(records.values, codec), 2) for codec in RATIO_CODECS},
    }


def other_versions(peers: Iterable[str]) -> dict[str, str]:
    """Of what is no package of Python's."""
    found = {"librdkafka": str(confluent_kafka.libversion()[0])}
    if "java" in peers:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)  # noqa: S607 - on PATH
        found |= {side_java.PACKAGE: side_java.RELEASE, "java": said.stderr.splitlines()[0]}
    return found


def refusals(points: Sequence[Point], peers: dict[str, Peer]) -> list[str]:
    """Which side is not measured at which points, and why."""
    found: dict[str, None] = {}
    for name, peer in peers.items():
        for point in points:
            why = peer.refuses(point)
            if why is not None:
                found[f"{name} is left out at some points: it {why}"] = None
    return list(found)


def head(points: Sequence[Point], peers: dict[str, Peer]) -> dict[str, Any]:
    """Data, versions, and each side's reasons for its settings."""
    return {
        "data": {kind: describe_data(kind) for kind in dict.fromkeys(point.data for point in points)},
        "versions": other_versions(peers),
        "sides": {
            name: {
                "package": peer.package,
                "why": peer.why,
                "share_of_records": peer.share,
                "least_warm_up": peer.warm_up,
            }
            | ({"jvm": side_java.JVM} if name == "java" else {})
            for name, peer in peers.items()
        },
        "left_out": refusals(points, peers),
    }
