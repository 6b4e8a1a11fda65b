"""Whole programs that use a pipeline and do not close it, or that fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Final

import psutil

from slabpress import ForkedError, Producer
from tests.integration.pipeline.conftest import MakePipeline
from tests.integration.pipeline.looks import WATCHDOG_S, begin, processes, read_numbers, stopped, until
from tests.support.mock_cluster import MockCluster

TWO_PRODUCERS: Final = """
    import gc, os, sys, time
    import psutil
    from slabpress import Pipeline
    pipeline = Pipeline(sys.argv[1], workers=2)
    first, second = (
        pipeline.producer(buffer_memory="1MiB", linger_ms=20_000, exit_flush_ms=int(sys.argv[3])) for _ in range(2)
    )
    children = psutil.Process().children()
    def send(count):
        for number in range(count):
            for name, producer in (("first", first), ("second", second)):
                producer.send(sys.argv[2], b"%s %d" % (name.encode(), number), partition=0)
"""


class _Program:
    """A user's program, between whose steps a test does something."""

    def __init__(self, text: str, *arguments: str, warnings: str = "always") -> None:
        code = textwrap.dedent(TWO_PRODUCERS) + textwrap.dedent(text)
        self._process = subprocess.Popen(
            [sys.executable, "-W", warnings, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def says(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def end(self, tell: str = "") -> tuple[int, str, str]:
        """Tell it a line and wait for its end: exit code, the rest of what it says, and what of errors."""
        out, errors = self._process.communicate(tell, timeout=WATCHDOG_S)
        return self._process.returncode, out, errors

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate(timeout=WATCHDOG_S)


def _all_of(name: str, count: int) -> dict[str, dict[int, list[int]]]:
    return {name: {0: list(range(count))}}


def test_a_program_that_forgets_to_close_loses_nothing_and_leaves_no_process(sink: MockCluster, topic: str) -> None:
    program = _Program(
        """
        send(500)
        print(*(child.pid for child in children), flush=True)
        """,
        sink.bootstrap_servers, topic, "20000",
    )  # fmt: skip
    pids = [int(word) for word in program.says().split()]
    assert program.end() == (0, "", "")
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert read_numbers(sink.bootstrap_servers, topic) == _all_of("first", 500) | _all_of("second", 500)


DROPPED: Final = """
    send(500)
    del first, second, pipeline, send
    gc.collect()
    print([child.pid for child in children if child.is_running()])
    """


def test_a_pipeline_that_is_dropped_warns_and_ends_with_everything_delivered(sink: MockCluster, topic: str) -> None:
    program = _Program(DROPPED, sink.bootstrap_servers, topic, "20000")
    code, said, errors = program.end()
    assert (code, said) == (0, "[]\n")
    assert errors.count("ResourceWarning: <Producer") == 2
    assert errors.count("ResourceWarning: <Pipeline") == 1
    assert "was not closed" in errors
    assert read_numbers(sink.bootstrap_servers, topic) == _all_of("first", 500) | _all_of("second", 500)


def test_a_pipeline_that_is_dropped_ends_also_where_warnings_are_errors(sink: MockCluster, topic: str) -> None:
    program = _Program(DROPPED, sink.bootstrap_servers, topic, "20000", warnings="error")
    code, said, errors = program.end()
    assert (code, said) == (0, "[]\n")
    assert "ResourceWarning: <Pipeline" in errors
    assert read_numbers(sink.bootstrap_servers, topic) == _all_of("first", 500) | _all_of("second", 500)


def test_a_producer_keeps_its_pipeline_and_not_the_other_way_round(sink: MockCluster, topic: str) -> None:
    """A pipeline that is only known to its producer does not end; a forgotten producer of one that is, does."""
    program = _Program(
        """
        send(1)
        del first
        gc.collect()
        del pipeline
        gc.collect()
        for number in range(1, 10):
            second.send(sys.argv[2], b"second %d" % number, partition=0)
        second.close()
        print(sum(child.is_running() for child in children))
        del second
        gc.collect()
        print(sum(child.is_running() for child in children))
        """,
        sink.bootstrap_servers, topic, "20000",
    )  # fmt: skip
    code, said, errors = program.end()
    assert (code, said) == (0, "3\n0\n")
    assert errors.count("ResourceWarning: <Producer") == 1
    assert errors.count("ResourceWarning: <Pipeline") == 1
    assert read_numbers(sink.bootstrap_servers, topic) == _all_of("first", 1) | _all_of("second", 10)


def test_what_every_producer_loses_at_exit_is_counted_in_a_warning(sink: MockCluster, topic: str) -> None:
    program = _Program(
        """
        for producer in (first, second):
            producer.send(sys.argv[2], b"x 0", partition=1)
            producer.flush()
        print("ready", flush=True)
        sys.stdin.readline()
        send(4)
        second.send_many(sys.argv[2], [b"x 1"] * 3)
        """,
        sink.bootstrap_servers, topic, "300",
    )  # fmt: skip
    assert program.says() == "ready"
    children = psutil.Process(program.pid).children()
    with stopped(sink.pid):
        code, _, errors = program.end("go\n")
    assert code == 0
    for count in (4, 7):
        assert f"RuntimeWarning: {count} records were lost: the producer was not closed" in errors
    assert len(children) == 3
    assert not any(child.is_running() for child in children)


def test_the_children_end_when_the_job_is_killed(sink: MockCluster, topic: str) -> None:
    program = _Program(
        """
        send(10)
        print("ready", flush=True)
        sys.stdin.readline()
        """,
        sink.bootstrap_servers, topic, "20000",
    )  # fmt: skip
    assert program.says() == "ready"
    children = psutil.Process(program.pid).children()
    program.kill()
    assert len(children) == 3
    assert psutil.wait_procs(children, timeout=WATCHDOG_S)[1] == []


def _in_forked_child(work: Callable[[], bool]) -> int:
    """Run ``work`` in a forked child, where nothing else of this process goes on; 0 if it gave True."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(WATCHDOG_S))  # which ends it
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_gets_errors_and_the_parent_goes_on(sink: MockCluster, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers = [pipeline.producer(linger_ms=60_000) for _ in range(2)]
    handles = [producer.send("t", b"open while the child uses it", partition=0) for producer in producers]
    before = processes(pipeline)

    def use() -> bool:
        calls: list[Callable[[], object]] = [pipeline.producer, pipeline.memory]
        for producer in producers:
            calls += [lambda p=producer: p.send("t", b"x"), producer.flush, producer.stats]  # type: ignore[misc]
        calls.append(lambda: handles[0].add_done_callback(print))  # its thread would sleep on the parent's arena
        refused = 0
        for call in calls:
            try:
                call()
            except ForkedError:
                refused += 1
        # Closing is for what belongs to somebody: here it is nothing, also at the end of a block.
        producers[0].close()
        with pipeline:
            pass
        pipeline.close()
        return refused == len(calls) == 9

    assert _in_forked_child(use) == 0
    assert processes(pipeline) == before
    assert not any(handle.done() for handle in handles)
    with pipeline.producer() as late:
        begin(late, "t")
    pipeline.close()
    assert all(handle.exception(0) is None for handle in handles)


def test_a_forked_child_that_lives_on_keeps_no_child_from_ending(
    sink: MockCluster, make_pipeline: MakePipeline
) -> None:
    """It holds copies of every descriptor: channels, pidfds, arenas."""
    pipeline = make_pipeline(sink.bootstrap_servers)
    producers: list[Producer] = [pipeline.producer() for _ in range(2)]
    begin(producers[0], "t")
    pids = list(processes(pipeline).values())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        producers[0].close()
        begin(producers[1], "t")
        pipeline.close()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "every child to be gone")
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)
