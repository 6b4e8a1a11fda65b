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

from bench.memory_messages import MESSAGE_BYTES, Job
from bench.memory_slabpress import LINGER_MS

FOLDER = Path(__file__).resolve().parent / "java"
# What the report is about, the release with its fix, and the newest of which the broker is there too.
RELEASES = {"java 1.0.0": "1.0.0", "java 1.1.0": "1.1.0", "java 4.3.1": "4.3.1"}
WHY = (
    "buffer.memory is the pool of the batches' buffers before compression; what compresses them and what requests take "
    "come on top; idempotence is off by default in 1.x and on in 4.x; 1.x has no delivery.timeout.ms"
)
OUT_OF_MEMORY = 3  # the JVM's exit code with ExitOnOutOfMemoryError
MAVEN_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 120


def missing_tool() -> str | None:
    """What is not there of what the Java sides need, or None."""
    return next((f"{tool} not found" for tool in ("java", "javac", "mvn") if shutil.which(tool) is None), None)


def jvm(cap_bytes: int) -> list[str]:
    """The JVM's options.

    The heap may grow to the cap that holds for every side. The frugal collector and tight bounds on free heap keep
    PSS near what the client holds: else it is how much garbage the machine has room for.
    """
    heap = [f"-Xmx{cap_bytes >> 20}m", "-Xms16m", "-XX:MinHeapFreeRatio=10", "-XX:MaxHeapFreeRatio=20"]
    return [*heap, "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]


def command(job: Job) -> list[str]:
    """The command line of a Java side."""
    arguments = [job.topic, str(job.producers), str(MESSAGE_BYTES), job.messages]
    arguments += [f"{name}={value}" for name, value in settings(job).items()]
    arguments.append(f"bootstrap.servers={job.bootstrap_servers}")
    return ["java", *jvm(job.cap_bytes), "-cp", _classpath(RELEASES[job.side]), "KafkaSender", *arguments]


def settings(job: Job) -> dict[str, Any]:
    """The client's settings; any other is its default."""
    serializer = "org.apache.kafka.common.serialization.ByteArraySerializer"
    chosen: dict[str, Any] = {
        "buffer.memory": job.buffer_bytes,
        "compression.type": job.codec,
        "max.in.flight.requests.per.connection": 1,
        "acks": "all",
        "linger.ms": LINGER_MS,
        "request.timeout.ms": job.patience_ms,
        "max.block.ms": 2 * job.patience_ms,
        "key.serializer": serializer,
        "value.serializer": serializer,
    }
    if not job.side.startswith("java 1."):  # earlier clients have no such setting
        chosen["delivery.timeout.ms"] = 2 * job.patience_ms
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
