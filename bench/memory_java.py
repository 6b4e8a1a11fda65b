"""The Java sides of the memory experiment: bench/java/KafkaSender.java with a release of Kafka's own client."""

from __future__ import annotations

from typing import Any

from bench.java_build import classpath
from bench.memory_messages import MESSAGE_BYTES, Job
from bench.memory_slabpress import LINGER_MS

# What the report is about, the release with its fix, and the newest of which the broker is there too.
RELEASES = {"java 1.0.0": "1.0.0", "java 1.1.0": "1.1.0", "java 4.3.1": "4.3.1"}
WHY = (
    "buffer.memory is the pool of the batches' buffers before compression; what compresses them and what requests take "
    "come on top; idempotence is off by default in 1.x and on in 4.x; 1.x has no delivery.timeout.ms"
)
OUT_OF_MEMORY = 3  # the JVM's exit code with ExitOnOutOfMemoryError


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
    return ["java", *jvm(job.cap_bytes), "-cp", classpath(RELEASES[job.side], "KafkaSender"), "KafkaSender", *arguments]


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
