"""The Java sides of the memory experiment: bench/java/KafkaSender.java with a release of Kafka's own client.

The jars come through Maven by coordinates, once a release; they and the compiled class are kept outside the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.memory_clients import DELIVERY_TIMEOUT_MS, LINGER_MS, REQUEST_TIMEOUT_MS
from bench.memory_messages import MESSAGE_BYTES, Job

FOLDER = Path(__file__).resolve().parent / "java"
RELEASES = {"java 1.0.0": "1.0.0", "java 1.1.0": "1.1.0", "java 4.4.0": "4.4.0"}
# The frugal collector and tight bounds on free heap, so that PSS is near what the client holds and not how much
# garbage the machine has room for.
JVM = (
    "-Xmx1g",
    "-Xms16m",
    "-XX:+UseSerialGC",
    "-XX:MinHeapFreeRatio=10",
    "-XX:MaxHeapFreeRatio=20",
    "-XX:+ExitOnOutOfMemoryError",
)
MAVEN_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 120


def missing_tool() -> str | None:
    """What is not there of what the Java sides need, or None."""
    return next((f"{tool} not found" for tool in ("java", "javac", "mvn") if shutil.which(tool) is None), None)


def command(job: Job) -> list[str]:
    """The command line of a Java side."""
    arguments = [job.topic, str(job.producers), str(MESSAGE_BYTES), job.messages]
    arguments += [f"{name}={value}" for name, value in settings(job).items()]
    arguments.append(f"bootstrap.servers={job.bootstrap_servers}")
    return ["java", *JVM, "-cp", _classpath(RELEASES[job.side]), "KafkaSender", *arguments]


def settings(job: Job) -> dict[str, Any]:
    """The client's settings; any other is its default."""
    serializer = "org.apache.kafka.common.serialization.ByteArraySerializer"
    chosen: dict[str, Any] = {
        "buffer.memory": job.buffer_bytes,
        "compression.type": job.codec,
        "max.in.flight.requests.per.connection": 1,
        "acks": "all",
        "linger.ms": LINGER_MS,
        "request.timeout.ms": REQUEST_TIMEOUT_MS,
        "max.block.ms": REQUEST_TIMEOUT_MS,
        "key.serializer": serializer,
        "value.serializer": serializer,
    }
    if not job.side.startswith("java 1."):  # earlier clients have no such setting
        chosen["delivery.timeout.ms"] = DELIVERY_TIMEOUT_MS
    return chosen


def _classpath(release: str) -> str:
    """The client's jars and the compiled program."""
    sources = (FOLDER / "pom.xml").read_bytes() + (FOLDER / "KafkaSender.java").read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "slabpress-bench" / f"{release}-{hashlib.sha256(sources).hexdigest()[:16]}"
    done = folder / "classpath"
    if done.exists() and all(Path(jar).exists() for jar in done.read_text().split(":")):
        return f"{done.read_text()}:{folder}"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "classpath.new"
    goal = ["dependency:build-classpath", f"-Dkafka.clients.version={release}", f"-Dmdep.outputFile={fresh}"]
    _run(["mvn", "-q", "-B", "-f", str(FOLDER / "pom.xml"), *goal], MAVEN_TIMEOUT_S)
    jars = fresh.read_text().strip()
    _run(["javac", "-d", str(folder), "-cp", jars, str(FOLDER / "KafkaSender.java")], COMPILE_TIMEOUT_S)
    fresh.write_text(jars)
    fresh.replace(done)
    return f"{jars}:{folder}"


def _run(argv: list[str], timeout_s: float) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed with exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
