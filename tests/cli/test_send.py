"""``slabpress send`` through the embedded broker, read back by confluent-kafka."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import COMMAND, DEADLINE_S, Cluster, slabpress, start_slabpress, wait_until
from tests.support.mock_cluster import MockCluster

PRODUCE = 0


def values(cluster: Cluster, topic: str, partitions: int = 1) -> list[bytes | None]:
    return [record.value for record in cluster.read(topic, partitions)]


def test_lines_of_standard_input_arrive_in_order_and_nothing_is_said(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    ended = slabpress("send", topic, "--bootstrap-server", cluster.servers, stdin=b"one\n\ntwo\r\nlast")
    assert ended == (0, "", [])
    assert values(cluster, topic) == [b"one", b"", b"two\r", b"last"]


def test_files_and_standard_input_arrive_in_the_order_of_their_names(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.new_topic()
    (tmp_path / "a").write_bytes(b"a1\r\na2\r\r\n")
    (tmp_path / "b").write_bytes(b"b1\rb1")
    (tmp_path / "empty").write_bytes(b"")
    files = (tmp_path / "b", "-", tmp_path / "empty", tmp_path / "a")
    ended = slabpress("send", topic, *files, "--crlf", "--bootstrap-server", cluster.servers, stdin=b"in\r\n")
    assert ended == (0, "", [])
    assert values(cluster, topic) == [b"b1\rb1", b"in", b"a1", b"a2\r"]


@pytest.mark.parametrize("codec", ["none", "gzip:9", "snappy", "lz4", "zstd:1"])
def test_many_lines_arrive_once_each_with_every_codec(cluster: Cluster, tmp_path: Path, codec: str) -> None:
    topic = cluster.new_topic(3)
    lines = [b"%d:%d" % (number % 97, number) for number in range(100_000)]
    (tmp_path / "lines").write_bytes(b"\n".join(lines))
    ended = slabpress(
        *("send", topic, tmp_path / "lines", "--bootstrap-server", cluster.servers, "--key-separator", ":"),
        *("--compression", codec, "--workers", "2", "--buffer-memory", "1MiB", "--acks", "all"),
    )
    assert ended == (0, "", [])
    by_key: dict[bytes | None, list[bytes]] = {}
    for record in cluster.read(topic, 3):
        by_key.setdefault(record.key, []).append(record.value or b"")
    assert by_key == {b"%d" % key: [b"%d" % number for number in range(key, 100_000, 97)] for key in range(97)}


def test_a_line_without_separator_is_named_and_counted_and_the_rest_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.new_topic()
    (tmp_path / "lines").write_bytes(b"k:1\nno\n:2\nk:3:4\n")
    ended = slabpress(
        "send", topic, tmp_path / "lines", "-", "--bootstrap-server", cluster.servers, "--key-separator", ":"
    )
    assert (ended.code, ended.out) == (1, "")
    assert ended.errors == [
        f"slabpress: {tmp_path / 'lines'}:2: no key separator b':' in the line",
        "slabpress: 1 of 4 records failed",
    ]
    assert [record[1:] for record in cluster.read(topic)] == [(b"k", b"1"), (b"", b"2"), (b"k", b"3:4")]


def test_a_line_without_separator_may_have_a_null_key(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    ended = slabpress(
        *("send", topic, "--bootstrap-server", cluster.servers, "--key-separator", r"\t", "--missing-key", "null"),
        stdin=b"k\tv\nno\n\n",
    )
    assert ended == (0, "", [])
    assert [record[1:] for record in cluster.read(topic)] == [(b"k", b"v"), (None, b"no"), (None, b"")]


def test_a_partition_takes_everything_whatever_the_key(cluster: Cluster) -> None:
    topic = cluster.new_topic(3)
    ended = slabpress(
        *("send", topic, "--bootstrap-server", cluster.servers, "--partition", "2", "--key-separator", "="),
        stdin=b"a=1\nb=2\nc=3\n",
    )
    assert ended == (0, "", [])
    assert [record.partition for record in cluster.read(topic, 3)] == [2, 2, 2]


def test_a_partition_that_does_not_exist_is_said(cluster: Cluster) -> None:
    topic = cluster.new_topic(3)
    ended = slabpress("send", topic, "--bootstrap-server", cluster.servers, "--partition", "3", stdin=b"1\n")
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert f"slabpress: topic '{topic}' has no partition 3: it has 3" in ended.errors[0]


def test_lines_that_can_never_fit_are_named_and_the_rest_goes_on(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    fits, refused_by_producer, refused_by_reader = b"x" * 900, b"y" * 999, b"z" * 400_000
    ended = slabpress(
        *("send", topic, "--bootstrap-server", cluster.servers, "--option", "max_request_size=1000"),
        stdin=b"\n".join([fits, refused_by_producer, b"a", refused_by_reader, b"b", refused_by_producer, b"c"]),
    )
    assert ended.code == 1
    assert len(ended.errors) == 4
    for number, line in zip((2, 4, 6), ended.errors, strict=False):
        assert line.startswith(f"slabpress: stdin:{number}: ")
        assert "max_request_size" in line
    assert ended.errors[3] == "slabpress: 3 of 7 records failed"
    assert values(cluster, topic) == [fits, b"a", b"b", b"c"]


def test_many_wrong_lines_are_counted_and_only_the_first_named(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    ended = slabpress(
        "send", topic, "--bootstrap-server", cluster.servers, "--key-separator", ":", stdin=b"no\n" * 1000 + b"k:v"
    )
    assert (ended.code, len(ended.errors)) == (1, 22)
    assert ended.errors[19].startswith("slabpress: stdin:20: ")
    assert "20 lines were refused" in ended.errors[20]
    assert ended.errors[21] == "slabpress: 1000 of 1001 records failed"
    assert values(cluster, topic) == [b"v"]


def test_records_that_the_broker_refuses_are_counted(cluster: Cluster) -> None:
    topic = cluster.new_topic(max_message_bytes="500")
    ended = slabpress("send", topic, "--bootstrap-server", cluster.servers, stdin=os.urandom(500).hex().encode())
    assert ended.code == 1
    assert "MESSAGE_TOO_LARGE" in ended.errors[0]
    assert ended.errors[1:] == ["slabpress: 1 of 1 records failed"]
    assert values(cluster, topic) == []


def test_a_missing_file_or_a_directory_is_said_before_anything_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.new_topic()
    (tmp_path / "good").write_bytes(b"1\n")
    for wrong, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "is a directory")):
        ended = slabpress("send", topic, tmp_path / "good", wrong, "--bootstrap-server", cluster.servers)
        assert ended == (1, "", [f"slabpress: {wrong}: {why}; nothing was sent"])
    assert values(cluster, topic) == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_fails_while_it_is_read_is_said_and_the_others_are_sent(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.new_topic()
    (tmp_path / "good").write_bytes(b"1\n")
    ended = slabpress("send", topic, "/proc/self/mem", tmp_path / "good", "--bootstrap-server", cluster.servers)
    assert ended.code == 1
    assert ended.errors == ["slabpress: /proc/self/mem: Input/output error; the rest of it was not sent"]
    assert values(cluster, topic) == [b"1"]


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    ended = slabpress("send", "t", "--bootstrap-server", "127.0.0.1:1", "--option", "max_block_ms=300", stdin=b"1\n")
    assert (ended.code, len(ended.errors)) == (1, 1)
    assert "127.0.0.1:1" in ended.errors[0]
    assert "max_block_ms=300" in ended.errors[0]


def test_a_terminal_gets_one_line_that_is_drawn_again(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    own, theirs = pty.openpty()
    command = [*COMMAND, "send", topic, "--bootstrap-server", cluster.servers, "--key-separator", ":"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(b"k:1234\nwrong\n")
        process.stdin.flush()
        drawn = b""
        while b"1 records" not in drawn:
            drawn += os.read(own, 1000)
        process.stdin.write(b"k:1\n" * 1999)
        process.stdin.close()
        with contextlib.suppress(OSError):  # what a terminal says at its end
            while data := os.read(own, 1000):
                drawn += data
        os.close(own)
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait(DEADLINE_S) == 1
    lines = drawn.decode().split("\r\n")
    assert lines[0].endswith("\r\x1b[Kslabpress: stdin:2: no key separator b':' in the line")
    last = lines[1].split("\r\x1b[K")[-1]
    assert re.fullmatch(r"2,000 records  [\d,]+ rec/s  [\d,]+\.\d MB/s", last)
    assert lines[2:] == ["slabpress: 1 of 2001 records failed", ""]


def test_control_c_closes_politely(cluster: Cluster) -> None:
    topic = cluster.new_topic()
    with start_slabpress("send", topic, "--bootstrap-server", cluster.servers) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n2\n3\nunfinished")
        process.stdin.flush()
        assert len(cluster.read(topic, at_least=3)) == 3
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert errors == b"slabpress: interrupted: 3 records were delivered, 0 accepted ones were not acknowledged\n"


@pytest.fixture(scope="module")
def mock() -> Iterator[MockCluster]:
    """A cluster that answers as late as it is told to."""
    with MockCluster() as cluster:
        cluster.create_topic("t")
        yield cluster


def test_control_c_counts_what_was_not_acknowledged(mock: MockCluster) -> None:
    mock.start_request_tracking()
    mock.broker_push_request_error_rtts(1, PRODUCE, [(0, 60_000)])
    server = ("--bootstrap-server", mock.bootstrap_servers, "--option", "exit_flush_ms=200")
    with start_slabpress("send", "t", *server) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n2\n3\n")
        process.stdin.flush()
        wait_until(lambda: mock.requests()[PRODUCE, 1] > 0, "a Produce request")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert errors == b"slabpress: interrupted: 0 records were delivered, 3 accepted ones were not acknowledged\n"


def test_control_c_ends_the_wait_for_a_cluster(mock: MockCluster) -> None:
    mock.start_request_tracking()
    mock.set_rtt(1, 60_000)
    with start_slabpress("send", "t", "--bootstrap-server", mock.bootstrap_servers) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        wait_until(lambda: mock.requests().total() > 0, "a request")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    mock.set_rtt(1, 0)
    assert process.returncode == 130
    assert errors == b"slabpress: interrupted: 0 records were delivered, 0 accepted ones were not acknowledged\n"
