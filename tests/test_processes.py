"""What of a pipeline needs no cluster: its settings, its plan, its end, and what it says of itself."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from slabpress import ConfigError, ForkedError, MemoryShortError, Pipeline, ProcessError, Producer, ProducerClosedError
from slabpress.config import PIPELINE_SETTINGS, Config
from slabpress.footprints import ARENA, CODEC_LINE, CONTROL, SPLIT_LINE, WORKER, PlanLine
from slabpress.plan import plan_memory
from slabpress.shm.control import CONTROL_BYTES

NOWHERE: Final = "127.0.0.1:1"
# The lines that count a process, however many producers it serves.
PROCESS_LINES: Final = {"control block", "worker process", "network process", "coordinator process"}


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    """A pipeline whose brokers do not exist, for what does not change it."""
    with Pipeline(NOWHERE, workers=2) as made:
        yield made


def _own(plan_lines: tuple[PlanLine, ...], name: str) -> PlanLine:
    return next(line for line in plan_lines if line.name == name)


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(Config.__struct_fields__) - set(PIPELINE_SETTINGS)))
def test_a_producers_setting_is_none_of_the_pipelines(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is a setting of each producer: pass it to producer\(\)$"):
        Pipeline(NOWHERE, **{name: 1})


@pytest.mark.parametrize("name", sorted(set(PIPELINE_SETTINGS) - {"bootstrap_servers"}))
def test_a_pipelines_setting_is_none_of_a_producers(pipeline: Pipeline, name: str) -> None:
    settings: dict[str, Any] = {name: 1}
    with pytest.raises(ConfigError, match=rf"^{name} is a setting of the pipeline: pass it to Pipeline\(\)$"):
        pipeline.producer(**settings)


def test_both_know_what_no_setting_is(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'linger': did you mean linger_ms"):
        pipeline.producer(linger=1)
    with pytest.raises(ConfigError, match="unknown setting 'worker': did you mean workers"):
        Pipeline(NOWHERE, worker=1)


def test_servers_are_the_pipelines(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="bootstrap_servers is a setting of the pipeline"):
        pipeline.producer(bootstrap_servers=NOWHERE)


def test_a_producers_settings_are_checked_together_with_the_pipelines() -> None:
    """The delivery timeout is the producer's, the request timeout that it must be longer than is the pipeline's."""
    with Pipeline(NOWHERE, workers=1, request_timeout_ms=200_000, client_id="ours") as pipeline:
        words = "delivery_timeout_ms is 120000, less than linger_ms + request_timeout_ms = 5 + 200000 = 200005"
        with pytest.raises(ConfigError, match=re.escape(words)):
            pipeline.producer()
        with pipeline.producer(delivery_timeout_ms=300_000, linger_ms=7, buffer_memory="1MiB") as producer:
            config = producer.config
    assert (config.request_timeout_ms, config.client_id, config.workers) == (200_000, "ours", 1)
    assert (config.delivery_timeout_ms, config.linger_ms, config.buffer_memory) == (300_000, 7, 1 << 20)
    assert config.bootstrap_servers == [NOWHERE]


def test_a_refused_producer_leaves_the_pipeline_as_it_was(pipeline: Pipeline) -> None:
    before = pipeline.plan
    with pytest.raises(ConfigError, match="too small"):
        pipeline.producer(buffer_memory=1)
    with pytest.raises(MemoryShortError, match=r"the plan takes 10\d{4}\.\d GiB \(one producer more\), but only "):
        pipeline.producer(buffer_memory="100TiB")
    with pytest.raises(ConfigError, match="compression_type is 'brotli'"):
        pipeline.producer(compression_type="brotli")
    assert pipeline.plan == before


def test_memory_that_is_not_there_for_the_processes_is_an_error_before_one_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _children()
    monkeypatch.setattr("slabpress.pipeline.preparations.memory_available_bytes", lambda: 10 << 20)
    with pytest.raises(MemoryShortError, match=r"\(the processes\), but only 10 MiB are available"):
        Pipeline(NOWHERE, workers=4)
    assert _children() == before


# --- the plan -------------------------------------------------------------------------------------------------


def test_a_pipelines_plan_is_one_set_of_processes_and_what_each_producer_adds(pipeline: Pipeline) -> None:
    alone = pipeline.plan
    settings: list[dict[str, Any]] = [
        {"buffer_memory": "1MiB", "compression_type": "zstd"},
        {"buffer_memory": "1MiB", "compression_type": "zstd"},
        {"buffer_memory": "3MiB", "compression_type": "gzip", "batch_size": "64KiB"},
    ]
    producers = [pipeline.producer(**own) for own in settings]
    plan = pipeline.plan
    added = {line for producer in producers for line in producer.plan.lines}
    # What is shared is counted once: one workspace for each codec, and one to split batches, the largest.
    zstd, gzip = _own(producers[0].plan.lines, CODEC_LINE), _own(producers[2].plan.lines, CODEC_LINE)
    splits = [_own(producer.plan.lines, SPLIT_LINE) for producer in producers]
    summed = sum(
        line.total_bytes
        for producer in producers
        for line in producer.plan.lines
        if line.name not in (CODEC_LINE, SPLIT_LINE)
    )
    shared = zstd.total_bytes + gzip.total_bytes + max(line.total_bytes for line in splits)
    assert plan.total_bytes == alone.total_bytes + summed + shared
    assert plan.total_bytes == sum(plan.by_part().values()) == sum(line.total_bytes for line in plan.lines)
    assert plan.by_part()[ARENA] == sum(producer.plan.arena_bytes for producer in producers) == 5 << 20
    assert {line.name for line in plan.lines} == {line.name for line in (*alone.lines, *added)}
    assert [line for line in plan.lines if line in alone.lines] == list(alone.lines)
    for producer in producers:
        producer.close()
    assert pipeline.plan == alone


def test_a_producers_own_plan_has_no_process_in_it(pipeline: Pipeline) -> None:
    with pipeline.producer(buffer_memory="1MiB") as producer:
        names = {line.name for line in producer.plan.lines}
        assert not names & PROCESS_LINES
        private = plan_memory(producer.config)
        assert private.lines[: len(producer.plan.lines)] == producer.plan.lines
        assert {line.name for line in private.lines} >= PROCESS_LINES
        assert producer.plan.workers == 2


def test_a_plan_is_a_table_and_plain_data(pipeline: Pipeline) -> None:
    with pipeline.producer(buffer_memory="1MiB"):
        plan = pipeline.plan
        data = plan.as_dict()
        assert data["total_bytes"] == plan.total_bytes
        assert data["workers"] == 2
        assert len(plan.table().splitlines()) == len(plan.lines) + 2
        assert {name for name in plan.by_part() if name.startswith(WORKER)} == {"worker 0", "worker 1"}


def test_memory_names_every_part_once(pipeline: Pipeline) -> None:
    with pipeline.producer(buffer_memory="1MiB"), pipeline.producer(buffer_memory="2MiB"):
        figures = pipeline.memory()
        names = [figure.name for figure in figures]
        assert len(set(names)) == len(names)
        assert {figure.name: figure.planned_bytes for figure in figures} == pipeline.plan.by_part()
        measured = {figure.name: figure.measured_bytes for figure in figures}
        assert measured[ARENA] == 3 << 20
        assert measured[CONTROL] == CONTROL_BYTES
        assert all(measured[name] for name in ("network process", "worker 0", "worker 1"))


# --- life -----------------------------------------------------------------------------------------------------


def test_close_twice_is_nothing_and_what_comes_after_it_says_so() -> None:
    before = _children()
    pipeline = Pipeline(NOWHERE, workers=1)
    producer = pipeline.producer(buffer_memory="1MiB")
    assert len(_children() - before) == 2
    assert (repr(pipeline), repr(producer)) == (f"<Pipeline {NOWHERE} open, 1 producers>", f"<Producer {NOWHERE} open>")
    pipeline.close()
    pipeline.close()
    assert _children() == before
    assert (repr(pipeline), repr(producer)) == (f"<Pipeline {NOWHERE} closed>", f"<Producer {NOWHERE} closed>")
    with pytest.raises(ProducerClosedError, match="the pipeline is closed: make another one"):
        pipeline.producer()
    with pytest.raises(ProducerClosedError, match="the producer is closed"):
        producer.send("t", b"x")
    producer.close()
    assert {figure.name for figure in pipeline.memory() if figure.measured_bytes} == {CONTROL}
    assert ARENA not in pipeline.plan.by_part()


def test_a_closed_producer_may_be_closed_again_while_its_pipeline_goes_on(pipeline: Pipeline) -> None:
    producer, other = (pipeline.producer(buffer_memory="1MiB") for _ in range(2))
    producer.close()
    producer.close()
    assert producer.stats().records_accepted == 0
    with pytest.raises(ProducerClosedError):
        producer.flush()
    other.flush()
    other.close()


def test_a_pipeline_that_nobody_closes_warns_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _children()
    pipeline = Pipeline(NOWHERE, workers=1)
    producer = pipeline.producer(buffer_memory="1MiB")
    del pipeline
    gc.collect()
    assert len(_children() - before) == 2, "its producer still needs it"
    texts = []
    with warnings.catch_warnings():  # a recorded warning would keep what it warns of
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: texts.append(str(message)))
        del producer
        gc.collect()
    assert sorted(texts) == [
        f"<Pipeline {NOWHERE} open, 0 producers> was not closed",
        f"<Producer {NOWHERE} open> was not closed",
    ]
    assert _children() == before


def test_a_block_that_fails_shows_its_own_error() -> None:
    before = _children()
    made: list[Pipeline | Producer] = []

    def fail() -> None:
        with Pipeline(NOWHERE, workers=1) as pipeline:
            made.extend((pipeline, pipeline.producer(buffer_memory="1MiB")))
            raise KeyError("the user's mistake")

    with pytest.raises(KeyError, match="the user's mistake"):
        fail()
    assert [repr(what) for what in made] == [f"<Pipeline {NOWHERE} closed>", f"<Producer {NOWHERE} closed>"]
    assert _children() == before


def test_children_that_cannot_be_started_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "no process more")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setattr("slabpress.pipeline.child.subprocess.Popen", no_process)
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(OSError, match="no process more"):
            Pipeline(NOWHERE, workers=1)
        left = len(list(Path("/proc/self/fd").iterdir())) - before
        gc.collect()
    assert left == 0


def test_children_that_do_not_start_are_an_error_with_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    before, popen = _children(), subprocess.Popen

    def another_module(argv: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        return popen([*argv[:3], "slabpress.no_such_module", *argv[4:]], **settings)

    monkeypatch.setattr("slabpress.pipeline.child.subprocess.Popen", another_module)
    with pytest.raises(ProcessError, match=r"No module named slabpress\.no_such_module: it could not start"):
        Pipeline(NOWHERE, workers=2)
    assert _children() == before


def test_producers_may_be_opened_and_closed_from_many_threads() -> None:
    failures: list[BaseException] = []

    def lives(pipeline: Pipeline) -> None:
        try:
            for _ in range(25):
                pipeline.producer(buffer_memory="256KiB").close()
        except BaseException as failure:  # noqa: BLE001 - looked at below
            failures.append(failure)

    interval = sys.getswitchinterval()
    with Pipeline(NOWHERE, workers=2) as pipeline:
        threads = [threading.Thread(target=lives, args=(pipeline,)) for _ in range(8)]
        sys.setswitchinterval(1e-5)  # threads take turns within every few lines
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert failures == []
        assert pipeline._coordinator._supervisor._arenas == {}
        assert ARENA not in pipeline.plan.by_part()


def test_a_forked_child_may_neither_use_nor_end_it(pipeline: Pipeline) -> None:
    children = _children()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # which ends it
        code = 1
        try:
            refused = 0
            for call in (pipeline.producer, pipeline.memory):
                try:
                    call()
                except ForkedError:
                    refused += 1
            with pipeline:
                code = 0 if refused == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _children() == children
    pipeline.producer(buffer_memory="256KiB").close()
