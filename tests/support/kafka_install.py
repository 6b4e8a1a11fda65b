"""Finds Java and the jars of Apache Kafka, and starts processes that never outlive the tests.

The jars come through Maven from the coordinates in ``tests/pom.xml``, once; what was resolved is
remembered outside the tree. ``python -m tests.support.kafka_install`` does it ahead of a test run.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

POM = Path(__file__).resolve().parent.parent / "pom.xml"
MIN_JAVA = 17
MAVEN_TIMEOUT_S = 900
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
TOOL_TIMEOUT_S = 60.0
LOG_TAIL_BYTES = 3000
# Below the range from which the kernel picks ports for outgoing connections: a broker that is down
# finds its port free when it comes back.
PORTS = range(12000, 32000)

_JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xlog:cds*=off",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_FIELD = re.compile(r"(\w+): (\S+)")
_BIND_TO_PARENT = """\
import ctypes, os, sys
if ctypes.CDLL(None).prctl(1, 9, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone, or prctl(PR_SET_PDEATHSIG) was refused")
os.execvp(sys.argv[2], sys.argv[2:])
"""
# The kernel ties PDEATHSIG to the thread that forked, so all children come from this one, which
# lasts as long as the interpreter does.
_LASTING_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawn")


class KafkaStartError(RuntimeError):
    """A broker did not start, or one of Kafka's tools failed; the message carries the end of its output."""


class KafkaInstallError(RuntimeError):
    """The jars of Apache Kafka could not be had."""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.03) -> None:
    """Asks `condition` until it holds.

    Raises:
        TimeoutError: It did not hold within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so within {timeout_s:g} s")
        time.sleep(every_s)


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process in its own session that the kernel kills when this process ends, however it ends."""
    bound = [sys.executable, "-I", "-S", "-c", _BIND_TO_PARENT, str(os.getpid()), *argv]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(bound, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)

    return _LASTING_THREAD.submit(start).result()


def java() -> str | None:
    """The java of JAVA_HOME, or else the one on PATH."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=str(Path(home, "bin"))) if home else shutil.which("java")


@functools.cache
def _java_version(executable: str) -> str:
    done = subprocess.run([executable, "-version"], capture_output=True, text=True, check=False, timeout=60)
    return done.stderr + done.stdout


def missing_tool() -> str | None:
    """One line that says what to install before a broker can run, or None when all is there."""
    executable = java()
    if executable is None:
        return f"java not found: install a Java runtime >= {MIN_JAVA} (Debian: openjdk-17-jre-headless)"
    found = re.search(r'version "(\d+)', _java_version(executable))
    major = int(found[1]) if found else 0
    if major < MIN_JAVA:
        return f"java is version {major}: Kafka's broker needs >= {MIN_JAVA} (Debian: openjdk-17-jre-headless)"
    if shutil.which("mvn") is None and _remembered() is None:
        return "mvn not found: install Maven (Debian: maven); it resolves tests/pom.xml"
    return None


@functools.cache
def _cache_dir() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "slabpress-tests" / hashlib.sha256(POM.read_bytes()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _classpath_file() -> Path:
    return _cache_dir() / "classpath"


def _remembered() -> str | None:
    """The classpath of an earlier run, if every jar of it is still there."""
    try:
        text = _classpath_file().read_text()
    except FileNotFoundError:
        return None
    return text if text and all(Path(jar).exists() for jar in text.split(":")) else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def classpath() -> str:
    """The classpath of Apache Kafka, resolved through Maven when no earlier run left it here.

    Raises:
        KafkaInstallError: Maven did not resolve tests/pom.xml.
    """
    with _locked(_cache_dir() / "lock"):
        return _remembered() or _resolve()


def _resolve() -> str:
    fresh = _cache_dir() / "classpath.new"
    goal = ["dependency:build-classpath", f"-Dmdep.outputFile={fresh}"]
    done = subprocess.run(
        ["mvn", "-q", "-B", "-f", str(POM), *goal],
        capture_output=True,
        text=True,
        check=False,
        timeout=MAVEN_TIMEOUT_S,
    )
    if done.returncode or not fresh.exists():
        said = (done.stdout + done.stderr)[-1500:]
        raise KafkaInstallError(f"mvn could not resolve {POM.name}, exit code {done.returncode}: {said}")
    fresh.replace(_classpath_file())
    return _classpath_file().read_text()


def class_archive() -> Path:
    """Where the JVM's class data archive is kept; it halves the start-up time of a broker."""
    version = _java_version(java() or "java")
    return _cache_dir() / f"classes-{hashlib.sha256(version.encode()).hexdigest()[:16]}.jsa"


def ensure_class_archive() -> None:
    """Runs one broker to make the class data archive, unless it is there.

    A JVM that makes none leaves an empty file, so that the next run does not try again.
    """
    jars = classpath()
    with _locked(_cache_dir() / "lock.archive"):
        stamp = _cache_dir() / "archived"
        if class_archive().exists() and stamp.exists() and stamp.read_text() == jars:
            return
        class_archive().unlink(missing_ok=True)
        fresh = class_archive().with_suffix(".new")
        with tempfile.TemporaryDirectory(prefix="slabpress-kafka-") as folder:
            nodes = new_nodes(Path(folder), 1)
            try:
                launch(nodes, {}, {}, archive_to=fresh)
            finally:
                nodes[0].end(signal.SIGTERM, STOP_TIMEOUT_S)
        fresh.touch()
        fresh.replace(class_archive())
        stamp.write_text(jars)


def java_command(
    main: str, *args: str, heap_mb: int = 256, log_level: str = "error", archive_to: Path | None = None
) -> list[str]:
    """The command line that runs a class of Apache Kafka.

    Args:
        main: The class.
        args: Its arguments.
        heap_mb: The most heap it may take.
        log_level: What its logger writes to stderr.
        archive_to: Writes the class data archive there when the JVM ends, instead of using one.
    """
    archive = class_archive()
    flags = [*_JVM_FLAGS, f"-Xmx{heap_mb}m", f"-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}"]
    if archive_to is not None:
        flags.append(f"-XX:ArchiveClassesAtExit={archive_to}")
    elif archive.exists() and archive.stat().st_size > 0:
        flags.append(f"-XX:SharedArchiveFile={archive}")
    return [java() or "java", *flags, "-cp", classpath(), main, *args]


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """A record batch as Kafka's DumpLogSegments found it on disk; `size` is in bytes, with its header."""

    base_offset: int
    last_offset: int
    count: int
    codec: str
    is_valid: bool
    create_time_ms: int
    position: int
    size: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    last_sequence: int
    is_transactional: bool
    is_control: bool
    records_parsed: int = 0

    @property
    def all_parsed(self) -> bool:
        """Whether the tool could read as many records as the batch's header counts."""
        return self.records_parsed == self.count


def free_ports(count: int) -> list[int]:
    """Loopback ports on which nothing listens."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.choice(PORTS)))
                ports.append(probe.getsockname()[1])
        return ports


def run_tool(main: str, *args: str) -> None:
    """Runs one of Kafka's tools to its end.

    Raises:
        KafkaStartError: It failed, or took longer than TOOL_TIMEOUT_S.
    """
    with tempfile.TemporaryFile() as output:
        tool = spawn(java_command(main, *args), stdout=output, stderr=output)
        try:
            code: int | None = tool.wait(TOOL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
            tool.kill()
            tool.wait()
        if code != 0:
            output.seek(0)
            said = output.read()[-LOG_TAIL_BYTES:].decode(errors="replace")
            ended = f"exit code {code}" if code is not None else f"not done within {TOOL_TIMEOUT_S:g} s"
            raise KafkaStartError(f"{main}: {ended}: {said}")


def reassign(bootstrap_servers: str, topic: str, partition: int, replicas: Sequence[int]) -> None:
    """Orders that a partition's replicas be these, the preferred leader first."""
    part = {"topic": topic, "partition": partition, "replicas": list(replicas)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
        json.dump({"version": 1, "partitions": [part]}, plan)
        plan.flush()
        arguments = ("--bootstrap-server", bootstrap_servers, "--reassignment-json-file", plan.name)
        run_tool("org.apache.kafka.tools.reassign.ReassignPartitionsCommand", *arguments, "--execute")


def elect_preferred(client: AdminClient, topic: str, partition: int) -> None:
    """Orders that a partition's first replica lead it."""
    where = TopicPartition(topic, partition)
    outcome = client.elect_leaders(ElectionType.PREFERRED, [where]).result(TOOL_TIMEOUT_S)
    error = outcome[where]
    if error is not None and error.code() != KafkaError.ELECTION_NOT_NEEDED:
        raise KafkaException(error)


def new_id() -> str:
    """An id in the form in which Kafka writes its own; not with a dash first, which its tools take for an option."""
    while (text := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def admin_client(bootstrap_servers: str) -> AdminClient:
    """A client for administration that does not tell of each connection a starting broker refuses."""
    settings: dict[str, str | int | float | bool] = {
        "bootstrap.servers": bootstrap_servers,
        "log_level": 2,
        "reconnect.backoff.max.ms": 200,
    }
    return AdminClient(settings)


@dataclass
class Node:
    """One broker and controller: where it lives, and its process while it runs."""

    id: int
    folder: Path
    heap_mb: int
    direct_port: int
    controller_port: int
    proxied_port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where clients reach the broker itself."""
        return f"127.0.0.1:{self.direct_port}"

    @property
    def data(self) -> Path:
        """The directory that holds the broker's partitions."""
        return self.folder / "data"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _output(self) -> Path:
        return self.folder / "output.txt"

    def tail(self) -> str:
        """The end of what the broker has written to stdout and stderr."""
        return self._output.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def write_properties(
        self, common: Mapping[str, str], config: Mapping[str, str], proxy_address: str | None = None
    ) -> None:
        """Writes the broker's settings; those in `config` go before the rig's own."""
        listeners = {"DIRECT": self.address}
        advertised = dict(listeners)
        if proxy_address is not None:
            listeners["PROXIED"] = f"127.0.0.1:{self.proxied_port}"
            advertised["PROXIED"] = proxy_address
        listeners["CONTROLLER"] = f"127.0.0.1:{self.controller_port}"
        settings = {
            "node.id": str(self.id),
            "log.dirs": str(self.data),
            "listeners": ",".join(f"{name}://{at}" for name, at in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{at}" for name, at in advertised.items()),
            **common,
            **config,
        }
        self.folder.mkdir()
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def start_format(self, cluster_id: str) -> subprocess.Popen[bytes]:
        """Starts Kafka's tool that formats the broker's storage."""
        arguments = ("format", "-t", cluster_id, "-c", str(self._properties))
        with self._output.open("ab") as output:
            return spawn(java_command("kafka.tools.StorageTool", *arguments), stdout=output, stderr=output)

    def finish_format(self, tool: subprocess.Popen[bytes]) -> None:
        """Waits for the formatting.

        Raises:
            KafkaStartError: It failed.
        """
        if code := tool.wait(START_TIMEOUT_S):
            raise KafkaStartError(f"storage of broker {self.id}: exit code {code}: {self.tail()}")

    def run(self, archive_to: Path | None = None) -> None:
        """Starts the broker's process."""
        command = java_command(
            "kafka.Kafka",
            str(self._properties),
            heap_mb=self.heap_mb,
            log_level="warn",
            archive_to=archive_to,
        )
        with self._output.open("ab") as output:
            self.process = spawn(command, stdout=output, stderr=output)

    def end(self, sign: signal.Signals, timeout_s: float) -> None:
        """Sends the signal and waits until the process is gone, killed when it takes too long."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(sign)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def await_ready(self, expected: frozenset[int]) -> None:
        """Waits until this broker itself names all the expected brokers in its metadata.

        Raises:
            KafkaStartError: The process ended, or did not get there within START_TIMEOUT_S.
        """
        try:
            wait_until(lambda: self._answers(expected), f"broker {self.id} serves", START_TIMEOUT_S)
        except TimeoutError as late:
            raise KafkaStartError(f"{late}: {self.tail()}") from late

    def _answers(self, expected: frozenset[int]) -> bool:
        code = self.process.poll() if self.process is not None else -1
        if code is not None:
            raise KafkaStartError(f"broker {self.id} ended with exit code {code}: {self.tail()}")
        try:
            with socket.create_connection(("127.0.0.1", self.direct_port), timeout=1):
                pass
            # A new client each time: it asks the one broker it knows, not one it learnt of.
            known = admin_client(self.address).list_topics(timeout=2).brokers
        except (OSError, KafkaException):
            return False
        return expected <= known.keys()


def new_nodes(folder: Path, count: int) -> list[Node]:
    """Nodes that do not run yet, numbered from 1."""
    ports = iter(free_ports(3 * count))
    heap_mb = 512 if count == 1 else 384
    return [
        Node(number, folder / f"broker-{number}", heap_mb, next(ports), next(ports), next(ports))
        for number in range(1, count + 1)
    ]


def quorum(nodes: Sequence[Node]) -> dict[str, str]:
    """The settings that all nodes of a cluster share."""
    replicas = str(min(3, len(nodes)))
    voters = [f"{node.id}@127.0.0.1:{node.controller_port}" for node in nodes]
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "DIRECT",
        "listener.security.protocol.map": "DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.min.isr": str(min(2, len(nodes))),
        "auto.create.topics.enable": "true",
        "group.initial.rebalance.delay.ms": "0",
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "6000",
        # Records of tests carry any timestamp: none may make the broker drop them.
        "log.retention.ms": "-1",
        "log.segment.delete.delay.ms": "1000",
        "log.cleaner.dedupe.buffer.size": "8388608",
        "num.network.threads": "2",
    }


def launch(
    nodes: Sequence[Node],
    config: Mapping[str, str],
    proxies: Mapping[int, str],
    archive_to: Path | None = None,
) -> None:
    """Formats and starts the nodes of a new cluster and waits until all serve.

    Args:
        nodes: All nodes of the cluster.
        config: Broker settings that go before the rig's own.
        proxies: The addresses to advertise, by node, on a second listener; empty for none.
        archive_to: Where each node writes its class data archive when it ends.

    Raises:
        KafkaStartError: A node did not start.
    """
    common, cluster_id = quorum(nodes), new_id()
    for node in nodes:
        node.write_properties(common, config, proxies.get(node.id))
    tools = [(node, node.start_format(cluster_id)) for node in nodes]
    for node, tool in tools:
        node.finish_format(tool)
    for node in nodes:
        node.run(archive_to)
    for node in nodes:
        node.await_ready(frozenset(peer.id for peer in nodes))


def dump_segments(segments: Sequence[Path]) -> Iterator[BatchSummary]:
    """Runs Kafka's DumpLogSegments over a partition's files and streams the batches that it finds.

    Raises:
        KafkaStartError: The tool failed, or found bytes that are no batch.
    """
    files = ",".join(str(segment) for segment in segments)
    arguments = ("--deep-iteration", "--max-message-size", str(1 << 30), "--files", files)
    with tempfile.TemporaryFile() as errors:
        command = java_command("org.apache.kafka.tools.DumpLogSegments", *arguments)
        tool = spawn(command, stdout=subprocess.PIPE, stderr=errors)
        assert tool.stdout is not None
        try:
            yield from _batches(tool.stdout)
            if code := tool.wait(STOP_TIMEOUT_S):
                errors.seek(0)
                said = errors.read()[-LOG_TAIL_BYTES:].decode(errors="replace")
                raise KafkaStartError(f"DumpLogSegments: exit code {code}: {said}")
        finally:
            tool.kill()
            tool.stdout.close()
            tool.wait()


def _batches(lines: IO[bytes]) -> Iterator[BatchSummary]:
    batch: BatchSummary | None = None
    parsed = 0
    for line in lines:
        if line.startswith(b"|"):
            parsed += 1
            continue
        if batch is not None:
            yield replace(batch, records_parsed=parsed)
        if line.startswith(b"Found "):
            raise KafkaStartError(f"DumpLogSegments: {line.decode().strip()}")
        batch, parsed = _batch(line.decode()), 0
    if batch is not None:
        yield replace(batch, records_parsed=parsed)


def _batch(line: str) -> BatchSummary | None:
    if not line.startswith("baseOffset: "):
        return None
    values: dict[str, str] = dict(_FIELD.findall(line))
    return BatchSummary(
        base_offset=int(values["baseOffset"]),
        last_offset=int(values["lastOffset"]),
        count=int(values["count"]),
        codec=values["compresscodec"],
        is_valid=values["isvalid"] == "true",
        create_time_ms=int(values.get("CreateTime") or values["LogAppendTime"]),
        position=int(values["position"]),
        size=int(values["size"]),
        producer_id=int(values["producerId"]),
        producer_epoch=int(values["producerEpoch"]),
        base_sequence=int(values["baseSequence"]),
        last_sequence=int(values["lastSequence"]),
        is_transactional=values["isTransactional"] == "true",
        is_control=values["isControl"] == "true",
    )


def main() -> None:
    """Gets all ready ahead of a test run, so that no test's time limit has to bear the download."""
    missing = missing_tool()
    if missing is not None:
        sys.exit(missing)
    ensure_class_archive()
    sys.stdout.write(f"Apache Kafka: {len(classpath().split(':'))} jars\n")


if __name__ == "__main__":
    main()
