"""The arithmetic of bench.scaling and bench.interference, and the batches that codecs are measured with."""

from __future__ import annotations

import pytest

from bench.interference import compare
from bench.interference_side import split_cpus
from bench.scaling import efficiency, efficiency_cases, run_alone
from bench.scaling_alone import batches_of
from bench.scaling_side import Job


def test_the_codec_alone_runs_beside_a_process_for_each_that_the_pipeline_had() -> None:
    job = Job("lz4", 2, 16 << 10, 64 << 20, 4, 0.2, "nowhere:9092", "bench", [])
    codecs, load_cores = run_alone(job, [0.2, 0.05, 0.1])
    assert [sorted(codec) for codec in codecs] == [["bytes_per_s", "cpu_s_per_gb"]] * 2
    assert load_cores > 0


def test_efficiency_is_of_all_codec_processes_together_and_by_cpu_of_one_byte() -> None:
    run = {"bytes_per_s": 90.0, "worker_cpu_s_per_gb": 4.0}
    loaded = [{"bytes_per_s": 60.0, "cpu_s_per_gb": 2.5}, {"bytes_per_s": 40.0, "cpu_s_per_gb": 3.5}]
    free = [{"bytes_per_s": 75.0, "cpu_s_per_gb": 3.0}, {"bytes_per_s": 75.0, "cpu_s_per_gb": 3.0}]
    found = efficiency(run, loaded, free)
    assert found == pytest.approx(
        {
            "of_codec": 0.9,
            "of_codec_free": 0.6,
            "of_codec_cpu": 0.75,
            "codec_bytes_per_s": 100.0,
            "codec_cores": 0.3e-6,
        }
    )


def test_every_codec_is_measured_with_one_to_all_workers() -> None:
    cases = efficiency_cases(["gzip", "lz4"], 2)
    assert [(case.codec, case.workers) for case in cases if not case.batch_bytes] == [
        ("gzip", 1),
        ("gzip", 2),
        ("lz4", 1),
        ("lz4", 2),
    ]


def test_the_parts_of_a_slowdown_make_the_slowdown() -> None:
    shared = {"wall_s": 10.0, "process_cpu_s": 8.0, "children_cpu_s": 1.0, "preempted": 50.0}
    alone = shared | {"process_cpu_s": 7.5} | {"work_s": 5.0, "work_cpu_s": 4.9, "send_s": 0.0, "send_cpu_s": 0.0}
    run = shared | {"work_s": 5.5, "work_cpu_s": 5.1, "send_s": 0.25, "send_cpu_s": 0.2}
    found = compare(run, alone)
    assert found["slowdown"] == pytest.approx(0.15)
    assert found["calls"] + found["work_cpu"] + found["work_waits"] == pytest.approx(found["slowdown"])
    assert found["calls"] == pytest.approx(0.05)
    assert found["work_cpu"] == pytest.approx(0.04)
    assert found["thread_cpu"] == pytest.approx(0.08)
    assert found["process_cpu"] == pytest.approx(0.1)


def test_a_core_of_its_own_takes_two() -> None:
    assert split_cpus({3, 1, 2}) == (1, {2, 3})
    with pytest.raises(ValueError, match="two CPUs at least, here is 1"):
        split_cpus({0})


@pytest.mark.parametrize("batch_bytes", [16 << 10, 256 << 10])
def test_the_codec_gets_batches_as_large_as_slabpress_seals_them(batch_bytes: int) -> None:
    batches = batches_of(batch_bytes, "zstd:3")
    assert all(0.97 * batch_bytes < len(batch) <= batch_bytes for batch in batches)
    assert sum(map(len, batches)) > 12 << 20
