"""Programs in Java with a release of Kafka's own client: its jars through Maven by coordinates, compiled once.

Jars and classes are kept outside the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "java"
MAVEN_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 120


def missing_tool() -> str | None:
    """What is not there of what a Java program needs, or None."""
    return next((f"{tool} not found" for tool in ("java", "javac", "mvn") if shutil.which(tool) is None), None)


def classpath(release: str, program: str) -> str:
    """A release of the client, and a compiled program of bench/java."""
    sources = (FOLDER / "pom.xml").read_bytes() + (FOLDER / f"{program}.java").read_bytes()
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
    _run(["javac", "-d", str(folder), "-cp", jars, str(FOLDER / f"{program}.java")], COMPILE_TIMEOUT_S)
    fresh.write_text(jars)
    fresh.replace(done)
    return f"{jars}:{folder}"


def _run(argv: list[str], timeout_s: float) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed with exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
