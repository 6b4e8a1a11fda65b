"""The throughput comparison's pure parts: data, points, accounts, medians, tables and pictures."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench import kinds, points, throughput
from bench.peers import HEADLINE, PEERS
from bench.points import Point
from bench.side import cpu_seconds
from bench.throughput_brokers import Arrived
from bench.throughput_figures import summarize, tables
from bench.throughput_head import refusals
from bench.throughput_picture import CHARTS, Bar, longest, panels
from bench.throughput_run import Data, LostError, Plan, check

PLAN = Plan(1, None, 1.0, 0.1, "all", idempotent=False, linger_ms=5, buffer_memory="64MiB")


make = cache(kinds.make)


def run(side: str, seconds: float, cpu: float, **of_point: Any) -> dict[str, Any]:
    """A sample of 1,000 records and 2 MB, after a warm-up of half as many."""
    return {
        "point": Point(**of_point)._asdict(),
        "side": side,
        "records": 1000,
        "megabytes": 2.0,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "arrived": {"records": 1500, "octets": 1_000_000, "batches": 3},
    }


def test_a_row_has_the_median_the_least_and_the_most_of_its_rounds() -> None:
    (row,) = summarize([run("a", seconds, cpu) for seconds, cpu in ((1.0, 3.0), (4.0, 1.0), (2.0, 2.0))])
    assert row["rounds"] == 3
    assert row["records_per_s"] == {"median": 500.0, "min": 250.0, "max": 1000.0}
    assert row["mb_per_s"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert row["cpu_s_per_gb"] == {"median": 1000.0, "min": 500.0, "max": 1500.0}


def test_ratio_and_batch_size_count_the_warm_up_that_the_broker_took_too() -> None:
    (row,) = summarize([run("a", 1.0, 1.0)])
    assert row["ratio"] == 3.0
    assert row["batch_bytes"] == 1_000_000


def test_a_broker_that_does_not_say_what_it_took_leaves_these_figures_out() -> None:
    sample = run("a", 1.0, 1.0)
    sample["arrived"] = Arrived(1500)._asdict()
    (row,) = summarize([sample])
    assert row["ratio"] is None
    assert row["batch_bytes"] is None
    assert "| -     | -          |" in tables([row])


def test_sides_and_points_are_not_mixed() -> None:
    samples = [run("a", 1.0, 1.0), run("b", 2.0, 1.0), run("a", 4.0, 1.0, codec="gzip"), run("a", 1.0, 1.0)]
    rows = summarize(samples)
    assert [(row["side"], row["point"]["codec"], row["rounds"]) for row in rows] == [
        ("a", "lz4", 2),
        ("b", "lz4", 1),
        ("a", "gzip", 1),
    ]
    text = tables(rows)
    assert text.index("lz4, json-200, 4 partitions, no keys, sink") < text.index("| b ") < text.index("gzip, json-200")


@pytest.mark.parametrize(("acknowledged", "arrived"), [(9, 10), (10, 9), (10, 11), (11, 10)])
def test_a_side_that_lost_or_doubled_a_record_is_an_error(acknowledged: int, arrived: int) -> None:
    with pytest.raises(LostError, match=f"10 records were sent, {acknowledged} acknowledged, and the broker took"):
        check({"acknowledged": acknowledged}, Arrived(arrived), 10)


def test_a_side_that_delivered_all_is_none() -> None:
    check({"acknowledged": 10}, Arrived(10), 10)


def test_children_that_have_ended_are_in_the_processor_time_of_a_side() -> None:
    before = cpu_seconds()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert cpu_seconds() - before >= 0.25


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_records_are_read_as_they_were_written(kind: str, tmp_path: Path) -> None:
    made = make(kind)
    made = kinds.Records(made.keys[:500], made.values[:500])
    kinds.write(made, tmp_path / kind)
    assert kinds.read(tmp_path / kind) == made


@pytest.mark.parametrize(
    ("kind", "size"), [("json-100", 100), ("json-200", 200), ("json-1k", 1000), ("json-10k", 10000)]
)
def test_records_of_a_size_have_that_size(kind: str, size: int) -> None:
    assert {len(value) for value in make(kind).values} == {size}


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_no_record_holds_a_newline_so_that_all_can_be_sent_as_lines(kind: str) -> None:
    made = make(kind)
    assert not any(b"\n" in value for value in made.values)
    assert len(made.keys) == len(made.values)


def test_records_go_round_from_any_place() -> None:
    distinct = kinds.Records([b"1", b"2", None], [b"a", b"b", b"c"])
    assert kinds.go_round(distinct, 5, 5) == ([None, b"1", b"2", None, b"1"], [b"c", b"a", b"b", b"c", b"a"])


def test_a_run_has_as_many_records_as_its_megabytes_hold_or_as_were_asked_for() -> None:
    data = Data(Path(), distinct=10, value_bytes=2000)
    assert data.records_of(PLAN, 1.0) == 5000
    assert data.records_of(PLAN, 0.1) == 500
    assert data.records_of(PLAN._replace(records=30), 1.0) == 30
    assert data.records_of(PLAN._replace(records=1), 0.1) == 1


def test_the_full_suite_has_every_point_once_and_goes_along_one_axis_at_a_time() -> None:
    found = points.full()
    assert len(set(found)) == len(found)
    assert set(points.headline()) <= set(found)
    for point in found:
        differs = [name for name in ("data", "partitions", "broker") if getattr(point, name) != getattr(Point(), name)]
        assert len(differs) <= 1, point
        assert not differs or point.codec == "lz4" or differs == ["broker"], point


def test_a_codec_may_have_a_level() -> None:
    assert (Point(codec="zstd:9").codec_name, Point(codec="zstd:9").level) == ("zstd", 9)
    assert (Point(codec="lz4").codec_name, Point(codec="lz4").level) == ("lz4", None)


def test_a_side_is_left_out_where_it_cannot_do_what_is_compared_and_that_is_told() -> None:
    asked = [Point(codec="zstd:3", keyed=True), Point(codec="zstd:9"), Point(broker="mock")]
    found = {name: [peer.refuses(point) is None for point in asked] for name, peer in PEERS.items()}
    assert found["slabpress send_lines"] == [False, True, True]
    assert found["aiokafka send_batch"] == [True, False, True]
    assert found["kafka-python"] == [True, False, False]
    assert found["java"] == [True, True, False]
    assert found["confluent produce"] == found["slabpress send"] == [True, True, True]
    told = refusals(asked[:2], {"kafka-python": PEERS["kafka-python"], "java": PEERS["java"]})
    assert told == ["kafka-python is left out at some points: it cannot be told the level of zstd:9"]


def test_the_command_without_options_measures_the_headline() -> None:
    options = throughput.parse([])
    assert throughput.points_of(options) == points.headline()
    assert throughput.plan_of(options).rounds == 5
    assert {name.split()[0] for name in HEADLINE} == {"slabpress", "confluent"}


def test_what_is_asked_for_by_name_is_combined() -> None:
    options = throughput.parse(["--codecs", "lz4,zstd:9", "--partitions", "1,200", "--keyed", "--suite", "full"])
    found = throughput.points_of(options)
    assert found == [Point(codec, "json-200", count, keyed=True) for count in (1, 200) for codec in ("lz4", "zstd:9")]
    assert throughput.points_of(throughput.parse(["--suite", "full"])) == points.full()


@pytest.mark.parametrize("wrong", [["--codecs", "lz5"], ["--codecs", "zstd:x"], ["--data", "xml"], ["--sides", "me"]])
def test_what_there_is_not_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        throughput.parse(wrong)
    assert wrong[1] in capsys.readouterr().err


def test_a_picture_has_the_headlines_bars_by_codec_and_no_others() -> None:
    rows = summarize([run("a", 1.0, 1.0), run("a", 2.0, 1.0), run("a", 1.0, 1.0, partitions=1), run("b", 1.0, 8.0)])
    assert panels(rows, CHARTS["throughput.svg"]) == {"lz4": [Bar("a", 1.5, 1.0, 2.0), Bar("b", 2.0, 2.0, 2.0)]}
    assert panels(rows, CHARTS["cpu.svg"])["lz4"][1] == Bar("b", 4000.0, 4000.0, 4000.0)


def test_without_the_headline_a_picture_has_the_first_points_bars() -> None:
    rows = summarize([run("a", 1.0, 1.0, partitions=1), run("a", 1.0, 1.0, partitions=1, codec="none")])
    assert list(panels(rows, CHARTS["throughput.svg"])) == ["lz4", "none"]


def test_a_bar_is_cut_only_where_it_would_dwarf_all_others() -> None:
    assert longest({"lz4": [Bar("a", 10, 9, 11), Bar("b", 2, 2, 3)]}) == pytest.approx(3.9)
    assert longest({"lz4": [Bar("a", 8, 8, 9), Bar("b", 2, 2, 3)]}) == 9
    assert longest({"lz4": [Bar("a", 10, 9, 11)], "none": [Bar("a", 1, 1, 1)]}) == 11
