"""From construction to the end of the process, however it ends: callbacks, threads, forks, exits, idleness."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from slabpress import (
    CallbackFlushError,
    DeliveryHandle,
    DeliveryTimeoutError,
    FlushTimeoutError,
    ForkedError,
    Producer,
)
from tests.integration.conftest import MakeProducer
from tests.support.kafka import KafkaCluster, read_back
from tests.support.kafka_install import wait_until

pytestmark = pytest.mark.kafka


def run_program(text: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a Python program of a user, to its end."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def kill_child(module: str) -> None:
    """Kill one child of this process that runs the module, waiting for one to be there."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it may be dead and not yet reaped
                if module in child.cmdline():
                    found.append(child)
        return bool(found)

    wait_until(look, f"a child that runs {module}", 30)
    found[0].kill()


def values_of(kafka: KafkaCluster, topic: str) -> list[bytes | None]:
    return [record.value for record in read_back(kafka.bootstrap_servers, topic, timeout_s=30)]


def test_callbacks_run_on_one_background_thread_and_what_they_raise_is_logged(
    kafka: KafkaCluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads: set[str] = set()
    offsets: list[int | None] = []

    def note(handle: DeliveryHandle) -> None:
        threads.add(threading.current_thread().name)
        offsets.append(handle.result().offset)

    def broken(handle: DeliveryHandle) -> None:
        raise ValueError("the user's mistake")

    with Producer(kafka.bootstrap_servers, workers=1, on_delivery=note) as producer:
        producer.send(topic, b"0", partition=0, on_delivery=broken)
        for number in range(1, 100):
            producer.send(topic, b"%d" % number, partition=0)
        producer.flush()
        assert offsets == list(range(100))
    assert threads == {"slabpress-callbacks"}
    assert "the user's mistake" in caplog.text


def test_flush_and_close_in_a_callback_raise_instead_of_waiting_for_themselves(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(kafka.bootstrap_servers)
    caught: list[BaseException] = []

    def flush_inside(_: DeliveryHandle) -> None:
        for call in (producer.flush, producer.close):
            try:
                call()
            except CallbackFlushError as error:
                caught.append(error)

    producer.send(topic, b"x", on_delivery=flush_inside)
    producer.flush()
    assert len(caught) == 2


def test_eight_threads_keep_their_own_order_in_each_partition(kafka: KafkaCluster, topic: str) -> None:
    threads, each, partitions = 8, 4000, 5
    kafka.create_topic(topic, partitions)
    with Producer(kafka.bootstrap_servers, workers=2, compression_type="lz4", buffer_memory="4MiB") as producer:

        def work(name: int) -> None:
            for number in range(each):
                producer.send(topic, b"%d %d" % (name, number), key=b"%d" % (number % 17))

        workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        producer.flush()
    last: dict[tuple[int, bytes], int] = {}
    total = 0
    for record in read_back(kafka.bootstrap_servers, topic, timeout_s=60):
        assert record.value is not None
        name, number = record.value.split()
        assert last.get((record.partition, name), -1) < int(number)
        last[record.partition, name] = int(number)
        total += 1
    assert total == threads * each


def test_a_forked_child_gets_an_error_and_the_parent_goes_on(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(kafka.bootstrap_servers)
    producer.send(topic, b"before").result(30)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            producer.send(topic, b"in the child")
        except ForkedError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert b"belongs to the process that forked this one" in pipe.read()
    producer.send(topic, b"after").result(30)
    producer.close()
    assert values_of(kafka, topic) == [b"before", b"after"]


def test_a_program_that_forgets_to_close_loses_nothing(kafka: KafkaCluster, topic: str) -> None:
    done = run_program(
        """
        import sys
        from slabpress import Producer
        producer = Producer(sys.argv[1], workers=1, linger_ms=10_000)
        for number in range(1000):
            producer.send(sys.argv[2], b"%d" % number, partition=0)
        """,
        kafka.bootstrap_servers,
        topic,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert values_of(kafka, topic) == [b"%d" % number for number in range(1000)]


def test_what_is_lost_at_exit_is_counted_in_a_warning(kafka: KafkaCluster, topic: str) -> None:
    """The broker is paused, so nothing can be acknowledged within the stated deadline."""
    program = """
        import os, signal, sys
        from slabpress import Producer
        producer = Producer(sys.argv[1], workers=1, exit_flush_ms=300)
        producer.send(sys.argv[2], b"first", partition=0).result(30)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(7):
            producer.send(sys.argv[2], b"%d" % number, partition=0)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), kafka.bootstrap_servers, topic],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    kafka.pause(1)
    try:
        _, errors = process.communicate("go\n", timeout=60)
    finally:
        kafka.resume(1)
    assert "7 records were lost: the producer was not closed" in errors
    assert "exit_flush_ms=300" in errors


def test_close_with_a_timeout_in_an_outage_counts_what_it_abandons(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(kafka.bootstrap_servers)
    producer.send(topic, b"first").result(30)
    kafka.pause(1)
    try:
        handles = [producer.send(topic, b"x") for _ in range(5)]
        with pytest.raises(FlushTimeoutError, match=r"5 records were still under way after 0\.2 s"):
            producer.flush(0.2)
        with pytest.raises(FlushTimeoutError, match=r"closed after 0\.2 s with 5 records not acknowledged"):
            producer.close(0.2)
    finally:
        kafka.resume(1)
    for handle in handles:
        assert "the producer was closed" in str(handle.exception(0))


def test_an_outage_past_the_delivery_timeout_fails_the_records_and_then_all_goes_on(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(
        kafka.bootstrap_servers, delivery_timeout_ms=1500, request_timeout_ms=1000, reconnect_backoff_max_ms=100
    )
    producer.send(topic, b"first", partition=0).result(30)
    kafka.pause(1)
    try:
        handle = producer.send(topic, b"second", partition=0)
        queued = producer.send(topic, b"third", partition=0)
        for late in (handle, queued):
            with pytest.raises(DeliveryTimeoutError, match="1500"):
                late.result(30)
    finally:
        kafka.resume(1)
    assert producer.send(topic, b"fourth", partition=0).result(60).partition == 0


def test_ctrl_c_in_a_terminal_does_not_kill_the_children_before_they_flush(kafka: KafkaCluster, topic: str) -> None:
    """SIGINT to the whole process group, as a terminal sends it: the with block still delivers everything."""
    program = """
        import sys, time
        from slabpress import Producer
        try:
            with Producer(sys.argv[1], workers=2, linger_ms=60_000) as producer:
                for number in range(500):
                    producer.send(sys.argv[2], b"%d" % number, partition=0)
                print("ready", flush=True)
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), kafka.bootstrap_servers, topic],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said == "interrupted\n"
    assert values_of(kafka, topic) == [b"%d" % number for number in range(500)]


def test_children_end_when_the_job_is_killed(kafka: KafkaCluster, topic: str) -> None:
    program = """
        import sys, time
        from slabpress import Producer
        producer = Producer(sys.argv[1], workers=2)
        producer.send(sys.argv[2], b"x").result(30)
        print("ready", flush=True)
        time.sleep(60)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), kafka.bootstrap_servers, topic],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(kafka.bootstrap_servers, workers=2, compression_type="gzip", buffer_memory="4MiB")
    kafka.create_topic(topic, 3)
    handles = []
    for number in range(6000):
        handles.append(producer.send(topic, b"%d " % number * 50, key=b"%d" % (number % 7)))
        if number % 1000 == 500:
            kill_child("slabpress.workers")
    producer.flush(60)
    assert all(handle.exception(0) is None for handle in handles)
    assert len(values_of(kafka, topic)) == 6000


def test_a_killed_network_process_is_replaced_and_every_record_arrives_once_in_order(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    producer = make_producer(kafka.bootstrap_servers, workers=1, buffer_memory="4MiB")
    numbers = range(3000)
    for number in numbers:
        producer.send(topic, b"%d" % number, partition=0)
        if number % 1000 == 500:
            kill_child("slabpress.network")
    producer.flush(60)
    assert values_of(kafka, topic) == [b"%d" % number for number in numbers]


def test_nothing_burns_cpu_while_there_is_nothing_to_do(
    kafka: KafkaCluster, topic: str, make_producer: MakeProducer
) -> None:
    """Idle for two seconds, no process of the pipeline is scheduled for even one clock tick."""
    producer = make_producer(kafka.bootstrap_servers, workers=2)
    producer.send(topic, b"x").result(30)
    children = psutil.Process().children()
    pipeline = [child for child in children if any("slabpress." in part for part in child.cmdline())]
    assert len(pipeline) == 3
    before = [sum(child.cpu_times()[:2]) for child in pipeline]
    time.sleep(2)  # not a wait for a state: the time in which nothing must happen
    assert [sum(child.cpu_times()[:2]) for child in pipeline] == before


def test_the_arena_goes_back_when_the_producer_is_closed(kafka: KafkaCluster, topic: str) -> None:
    """Producers one after the other: no descriptor, thread, process or shared memory stays."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def one_life() -> None:
        with Producer(kafka.bootstrap_servers, workers=1, buffer_memory="8MiB") as producer:
            producer.send(topic, b"x").result(30)

    one_life()
    before, shared = descriptors(), psutil.Process().memory_info().shared
    for _ in range(5):
        one_life()
    assert descriptors() == before
    assert psutil.Process().memory_info().shared < shared + (8 << 20)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("slabpress")], "threads to end", 30)
