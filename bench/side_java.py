"""Java's side: bench/java/ThroughputSender.java with the newest release of Kafka's own client."""

from __future__ import annotations

from typing import Any

from bench.java_build import classpath
from bench.job import Job

RELEASE = "4.4.0"
PACKAGE = "kafka-clients"
PROGRAM = "ThroughputSender"
# What Kafka's own scripts give a JVM (kafka-run-class.sh: KAFKA_JVM_PERFORMANCE_OPTS), and a heap that is no limit.
JVM = [
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-Xms2g",
    "-Xmx2g",
]
# https://docs.confluent.io/cloud/current/client-apps/optimizing/throughput.html: larger batches than the default
# 16 KiB, and more buffer.memory than the default 32 MiB where there are many partitions (an open batch takes all its
# size). It advises batches of 100,000 to 200,000 bytes; a megabyte, as the others have, was no slower.
SETTINGS: dict[str, Any] = {"batch.size": 1_000_000, "buffer.memory": 512 << 20}
WHY = "Confluent's advice for throughput: larger batches, and memory that is no limit; Kafka's own JVM options"
# A JVM compiles while it runs: its first second moves half of what later ones do. So it gets more to warm up with.
WARM_UP = 2.0


def settings(job: Job) -> dict[str, Any]:
    """The client's settings; any other is its default."""
    serializer = "org.apache.kafka.common.serialization.ByteArraySerializer"
    chosen: dict[str, Any] = SETTINGS | {
        "compression.type": job.codec,
        "acks": job.acks,
        "enable.idempotence": str(job.idempotent).lower(),
        "linger.ms": job.linger_ms,
        "key.serializer": serializer,
        "value.serializer": serializer,
    }
    if job.level is not None:
        chosen[f"compression.{job.codec}.level"] = job.level  # KIP-390
    return chosen


def command(job: Job) -> list[str]:
    """The command line."""
    amounts = [str(job.warm_up), str(job.records), str(job.keyed).lower()]
    given = [f"{name}={value}" for name, value in settings(job).items()]
    arguments = [job.data, job.topic, *amounts, f"bootstrap.servers={job.bootstrap_servers}", *given]
    return ["java", *JVM, "-cp", classpath(RELEASE, PROGRAM), PROGRAM, *arguments]
