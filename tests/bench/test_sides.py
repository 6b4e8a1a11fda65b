"""Every side of the throughput comparison, with the sink, and what becomes of one that loses records."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import throughput
from bench.job import Job
from bench.peers import PEERS, Peer, python_side
from bench.points import Point
from bench.throughput_run import Comparison, LostError, Plan
from tests.support.kafka_install import spawn

RECORDS = 2500  # more than two blocks
PYTHON_SIDES = [name for name in PEERS if name != "java"]
PLAN = Plan(1, RECORDS, 0.0, 0.1, "all", idempotent=False, linger_ms=5, buffer_memory="64MiB")


@pytest.fixture(scope="module", autouse=True)
def _thread_that_spawns() -> None:
    # It lasts as long as the tests' process, so it must not begin in a test.
    spawn([sys.executable, "-c", ""]).wait()


@contextlib.contextmanager
def comparison(plan: Plan, peers: dict[str, Peer]) -> Iterator[Comparison]:
    with Comparison(plan, peers, lambda _: None) as made:
        yield made


def samples(plan: Plan, point: Point, names: list[str]) -> list[dict[str, Any]]:
    peers = {name: PEERS[name]._replace(share=1.0) for name in names}
    with comparison(plan, peers) as made:
        return list(made.rounds([point]))


@pytest.mark.parametrize("point", [Point("none"), Point("zstd:3", partitions=3, keyed=True)], ids=["plain", "keyed"])
def test_every_side_in_python_delivers_every_record_and_tells_its_settings(point: Point) -> None:
    names = [name for name in PYTHON_SIDES if PEERS[name].refuses(point) is None]
    found = samples(PLAN, point, names)
    assert [sample["side"] for sample in found] == names
    for sample in found:
        assert sample["records"] == RECORDS
        assert sample["acknowledged"] == sample["arrived"]["records"] == RECORDS + sample["warm_up"]
        assert sample["seconds"] > 0
        assert sample["settings"]
        shrunk = sample["arrived"]["octets"] < sample["arrived"]["records"] * 150
        assert shrunk == (point.codec != "none"), sample


def test_idempotence_and_acks_reach_every_side_in_python() -> None:
    for plan in (PLAN._replace(idempotent=True), PLAN._replace(acks="1")):
        for sample in samples(plan, Point(), PYTHON_SIDES):
            given = {name.replace(".", "_"): value for name, value in sample["settings"].items()}
            assert given["enable_idempotence"] == plan.idempotent, sample["side"]
            assert str(given["acks"]) == plan.acks, sample["side"]


@pytest.mark.kafka
def test_java_delivers_every_record_and_tells_its_settings() -> None:
    (sample,) = samples(PLAN, Point("zstd:3", keyed=True), ["java"])
    assert sample["acknowledged"] == sample["arrived"]["records"] == RECORDS + 2 * RECORDS
    assert sample["settings"]["compression.zstd.level"] == 3
    assert sample["cpu_seconds"] > 0


@pytest.mark.kafka
def test_a_real_kafka_says_what_arrived() -> None:
    (sample,) = samples(PLAN, Point(broker="kafka"), ["slabpress send_many"])
    assert sample["arrived"] == {"records": RECORDS + 250, "octets": None, "batches": None}


def forgetful(job: Job) -> list[str]:
    """A side that sends one record less than it says."""
    script = """
import json, sys
from bench import side
class Forgetful(side.SIDES["slabpress send_many"]):
    def send(self, prepared):
        keys, values = prepared[-1]
        super().send([*prepared[:-1], (keys, values[:-1])])
        return sum(len(values) for _, values in prepared)
side.SIDES["forgetful"] = Forgetful
side.main()
"""
    return [sys.executable, "-c", script, json.dumps(job._asdict())]


def test_a_side_that_lost_a_record_ends_the_comparison() -> None:
    with comparison(PLAN, {"forgetful": Peer("", "", forgetful)}) as made:
        expected = f"forgetful at .*: {RECORDS + 250} records were sent, {RECORDS + 250} .* took {RECORDS + 250 - 2}:"
        with pytest.raises(LostError, match=expected):
            list(made.rounds([Point()]))


def test_a_side_that_fails_ends_the_comparison_with_its_last_words() -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('nothing works')"]
    with (
        comparison(PLAN, {"broken": Peer("", "", lambda _: words)}) as made,
        pytest.raises(LostError, match="broken ended with 1: nothing works"),
    ):
        list(made.rounds([Point()]))


def test_sides_take_turns_in_every_round() -> None:
    names = ["slabpress send", "slabpress send_lines"]
    found = samples(PLAN._replace(rounds=2, records=10), Point(), names)
    assert [(sample["round"], sample["side"]) for sample in found] == [
        (number, name) for number in (0, 1) for name in names
    ]


def test_after_a_failure_the_command_writes_what_came_before_and_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = {"good": PEERS["slabpress send_many"], "forgetful": Peer("", "", forgetful)}
    peers["good"] = peers["good"]._replace(command=lambda job: python_side(job._replace(side="slabpress send_many")))
    monkeypatch.setattr(throughput, "PEERS", peers)
    file = tmp_path / "figures.json"
    options = ["--sides", "good,forgetful", "--records", "100", "--rounds", "2", "--codecs", "none"]
    monkeypatch.setattr(sys, "argv", ["throughput", *options, "--json", str(file)])
    assert throughput.main() == 1
    written = json.loads(file.read_text())
    assert [sample["side"] for sample in written["samples"]] == ["good"]
    assert "the broker took" in written["error"]
    assert "ERROR: forgetful at" in capsys.readouterr().err


def test_the_command_measures_prints_and_writes_what_another_can_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    options = ["--sides", "slabpress send_lines", "--records", "1000", "--rounds", "2", "--codecs", "lz4"]
    monkeypatch.setattr(sys, "argv", ["throughput", *options, "--json", str(file)])
    assert throughput.main() == 0
    text = capsys.readouterr().out
    assert "| slabpress send_lines |" in text
    assert "batch_size=1000000" in text
    written = json.loads(file.read_text())
    assert len(written["samples"]) == 2
    assert written["machine"]["processor"]
    assert written["machine"]["versions"]["slabpress"]
    assert written["data"]["json-200"]["bytes"] == {"mean": 200.0, "least": 200, "most": 200}
    assert written["samples"][0]["settings"]["compression_type"] == "lz4"
    monkeypatch.setattr(sys, "argv", ["throughput", "--from", str(file)])
    assert throughput.main() == 0
    assert capsys.readouterr().out == text[text.index("lz4, json-200") :]
