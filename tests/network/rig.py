"""A real network process with this test as its coordinator and its worker.

The rig makes an arena, starts ``python -P -m slabpress.network`` through a Grant as the supervisor does, seals
batches with the native record writer and "compresses" them by copying slabs into output buffers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from slabpress._native import NONE, OpenBatch, RecordWriter
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, NETWORK, Control
from slabpress.shm.descriptors import Descriptors, Output, Result
from slabpress.shm.handover import ArenaGrant, Grant, pidfd_of_self
from slabpress.shm.states import (
    COMPRESSING,
    DONE,
    FREE,
    OPEN,
    OUTPUT_FILLING,
    OUTPUT_FREE,
    OUTPUT_READY,
    PROCESS_RUNNING,
    READY,
    SLAB_COMPRESSING,
    SLAB_FREE,
    SLAB_OPEN,
)
from slabpress.shm.topics import TopicTable
from tests.shm.kit import publish_seal

SETTINGS: Final[dict[str, Any]] = {
    "client_id": "rig",
    "request_timeout_ms": 30_000,
    "retry_backoff_ms": 20,
    "retry_backoff_max_ms": 200,
    "reconnect_backoff_ms": 20,
    "reconnect_backoff_max_ms": 200,
    "max_in_flight_requests_per_connection": 5,
    "metadata_max_age_ms": 300_000,
    "metadata_recovery_strategy": "rebootstrap",
    "metadata_recovery_rebootstrap_trigger_ms": 300_000,
    "socket_connection_setup_timeout_ms": 5_000,
    "send_buffer_bytes": -1,
    "receive_buffer_bytes": -1,
    "connections_max_idle_ms": 540_000,
    "orphan_drain": False,
    "orphan_log": "",
}
DELIVERY: Final[dict[str, Any]] = {
    "acks": -1,
    "delivery_timeout_ms": 30_000,
    "max_request_size": 1_048_576,
    "enable_idempotence": False,
}
DEADLINE_S: Final = 20.0
OLD_TIMESTAMP_MS: Final = 1_700_000_000_000


class Record(NamedTuple):
    """What a test puts into a batch."""

    value: bytes
    key: bytes | None = None
    timestamp_ms: int | None = None


def arena_bytes(slabs: int, slab_bytes: int) -> int:
    """Enough for so many slabs and as many output buffers."""
    return at.HEADER_BYTES + slabs * (2 * slab_bytes + at.table_bytes_per_pair()) + 256 * 1024


class Rig:
    """Coordinator and worker of one network process.

    Args:
        bootstrap: the ``bootstrap_servers`` setting.
        delivery: the arena's settings, over DELIVERY.
        settings: the process's settings, over SETTINGS.
        slabs, slab_bytes: the arena's geometry.
        direct: batches are sent from their slabs; those that would be output buffers are slabs, but for an eighth.
        start: whether to start the network process at once.
    """

    def __init__(
        self,
        bootstrap: str | Sequence[str],
        *,
        delivery: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        slabs: int = 64,
        slab_bytes: int = 16 * 1024,
        partitions: int = 64,
        direct: bool = False,
        start: bool = True,
    ) -> None:
        servers = bootstrap.split(",") if isinstance(bootstrap, str) else list(bootstrap)
        self._settings = {**SETTINGS, **(settings or {}), "bootstrap_servers": servers}
        self._delivery = {**DELIVERY, **(delivery or {})}
        geometry = at.plan_geometry(arena_bytes(slabs, slab_bytes), slab_bytes, 32, partitions)
        if direct:
            geometry = at.make_direct(geometry, geometry.output_count // 8)
        self.arena = Arena.create(geometry)
        self.control = Control.create(1)
        self.topics = TopicTable(self.arena)
        self.descriptors = Descriptors(self.arena)
        self._parent = pidfd_of_self()
        self._topic_indices: dict[str, int] = {}
        self._partition_indices: dict[tuple[str, int], int] = {}
        layout = self.arena.layout
        self._writer = RecordWriter(
            self.arena.memory, self.arena.slabs, self.arena.slab_shares, SLAB_OPEN, layout.descriptors,
            at.DESCRIPTOR_BYTES, at.COMMIT_AT, at.BASE_TIMESTAMP_AT, at.MAX_TIMESTAMP_AT, at.FIRST_SLAB_AT,
            at.SLAB_COUNT_AT,
            geometry.slab_bytes * slabs, geometry.slab_bytes * slabs,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        if start:
            self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # The network process.

    def start(self) -> None:
        """Start the process and wait until it runs."""
        self.control.get_up(NETWORK)
        self.control.set_state(NETWORK, 0)
        grant = Grant(
            NETWORK,
            self.control.descriptor,
            [bell.descriptors for bell in self.control.bells],
            self._parent,
            -1,
            self._settings,
            [ArenaGrant(0, self.arena.descriptor, self._delivery)],
        )
        read, write = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "slabpress.network", str(read)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=sorted(grant.inherited() | {read}),
                start_new_session=True,
            )
        finally:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(grant.encode())
        self.until(lambda: self.control.state(NETWORK) == PROCESS_RUNNING, "the network process runs")

    @property
    def pid(self) -> int:
        """The network process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """Kill it at whatever instruction it is."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> tuple[int, bytes]:
        """End it as the coordinator does; its exit code and everything that it wrote."""
        self.control.stop()
        return self._reap()

    def _reap(self) -> tuple[int, bytes]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=DEADLINE_S)
        code, self.process = self.process.returncode, None
        return code, out + err

    def close(self) -> None:
        """End everything and give all descriptors back."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            code, said = self.stop()
            assert (code, said) == (0, b"")
        os.close(self._parent)
        self.control.close()
        gc.collect()  # queues and their arena know each other, and batches hold views of it
        self.arena.close()

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
        """Wait for a condition, on the coordinator's doorbell as far as that rings."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the network process died: {self._reap()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}")
            self.control.lie_down(COORDINATOR)
            if not condition():
                self.control.bells[COORDINATOR].wait(0.01)
            self.control.get_up(COORDINATOR)

    # The coordinator.

    def want(self, topic: str) -> int:
        """Ask for a topic; its index."""
        if topic not in self._topic_indices:
            self._topic_indices[topic] = len(self._topic_indices)
            self.topics.want(self._topic_indices[topic], topic)
            self.control.wake(NETWORK)
        return self._topic_indices[topic]

    def know(self, topic: str, timeout_s: float = DEADLINE_S) -> int:
        """Ask for a topic and wait for its partition count."""
        index = self.want(topic)
        self.until(lambda: self.topics.answer(index).partitions > 0, f"metadata of {topic}", timeout_s)
        return self.topics.answer(index).partitions

    def _partition_index(self, topic: str, partition: int) -> int:
        key = (topic, partition)
        if key not in self._partition_indices:
            index = self._partition_indices[key] = len(self._partition_indices)
            self.topics.set_partition(index, self.want(topic), partition)
        return self._partition_indices[key]

    def seal(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        """Write and seal a batch; its descriptor's index."""
        arena = self.arena
        index = arena.batch_states.find(FREE)
        assert index >= 0, "no descriptor is free"
        arena.batch_states.store(index, OPEN)
        self.descriptors.open(index, self._partition_index(topic, partition), time.monotonic_ns())
        batch = OpenBatch(index, partition)
        for record in records:
            assert self._writer.append(batch, record.key, record.value, None, record.timestamp_ms) > 0
        publish_seal(arena, self.descriptors, batch)
        return index

    def done(self, index: int) -> bool:
        """Whether a batch has its result."""
        return self.arena.batch_states.load(index) == DONE

    def result(self, index: int, timeout_s: float = DEADLINE_S) -> Result:
        """Wait for a batch's result and free its descriptor."""
        self.until(lambda: self.done(index), f"the result of batch {index}", timeout_s)
        result = self.descriptors.result(index)
        self.arena.batch_states.store(index, FREE)
        return result

    def counter(self, name: str) -> int:
        """One of the network process's counters."""
        return self.arena.memory.load_u64(at.NETWORK_COUNTERS_AT + 8 * at.NETWORK_COUNTERS.index(name))

    def outputs_are_free(self) -> bool:
        """Whether nothing of what is sent is held: no output buffer, nor slab (law 2)."""
        geometry = self.arena.geometry
        return (
            self.arena.outputs.count_free() == geometry.output_count
            and self.arena.slabs.count_free() == geometry.slab_count
        )

    def scribble_on_what_is_free(self) -> None:
        """Write over every block that is said to be free, as the next records, or the next batch, would."""
        arena = self.arena
        for blocks, claimed in ((arena.slabs, SLAB_OPEN), (arena.outputs, OUTPUT_FILLING)):
            free = blocks.count_free()
            first = blocks.claim(free, claimed)
            if first != NONE:
                for view in blocks.views(first, free * blocks.block_bytes):
                    view[:] = b"\xff" * len(view)
                blocks.mark(first, FREE)

    # The worker.

    def compress(self, index: int, *, codec: int = 0, payload: bytes | None = None) -> None:
        """Make a sealed batch READY, with the records as they are or with this payload.

        In a direct arena it is READY as it is.
        """
        arena = self.arena
        if arena.is_direct:
            assert (codec, payload) == (0, None), "nothing is compressed in a direct arena"
            self.control.wake(NETWORK)
            return
        sealed = self.descriptors.sealed(index)
        raw = b"".join(arena.slabs.views(sealed.first_slab, sealed.raw_bytes))
        data = raw if payload is None else payload
        needed = max(1, -(-len(data) // arena.geometry.output_bytes))
        arena.batch_states.store(index, COMPRESSING)
        arena.slabs.mark(sealed.first_slab, SLAB_COMPRESSING)
        first = arena.outputs.claim(needed, OUTPUT_FILLING)
        assert 0 <= first < arena.geometry.output_count, "no output buffer is free"
        done = 0
        for view in arena.outputs.views(first, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)
        self.descriptors.set_output(index, Output(first, needed, len(data), codec))
        arena.outputs.mark(first, OUTPUT_READY)
        arena.batch_states.store(index, READY)
        arena.slabs.mark(sealed.first_slab, SLAB_FREE)
        self.control.wake(NETWORK)

    def send(self, topic: str, partition: int, *values: bytes) -> int:
        """Seal and compress a batch of these values."""
        index = self.seal(topic, partition, [Record(value) for value in values])
        self.compress(index)
        return index

    def is_free(self, output: int) -> bool:
        """Whether one output buffer is free."""
        return self.arena.payload_states.load(output) == OUTPUT_FREE


@contextlib.contextmanager
def noida(folder: Path) -> Any:
    """Noida's Kafka on loopback; gives its address."""
    # The console script starts this file and does not end it when it is ended.
    spec = importlib.util.find_spec("noida_db")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).with_name("noida-db")
    process = subprocess.Popen(
        [str(program), "start", "--only", "kafka", "--host", "127.0.0.1", "--kafka-port", "0", "--data-dir",
         str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield _address_in(process.stdout)
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def _address_in(output: IO[bytes] | None) -> str:
    assert output is not None
    for line in output:
        words = line.decode().split()
        if words[:1] == ["kafka"]:
            return next(word for word in words if word.startswith("127.0.0.1:"))
    raise AssertionError("noida-db did not say where it listens")
