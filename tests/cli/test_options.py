"""The command line: what it understands, and how it says that something is wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from slabpress.cli.options import parse, settings_of
from slabpress.errors import ConfigError
from tests.cli.rig import slabpress

SEND = ("send", "clicks", "--bootstrap-server", "localhost:9092")


def send(*more: str) -> argparse.Namespace:
    return parse([*SEND, *more])


def test_settings_that_are_not_named_are_left_to_the_library() -> None:
    assert settings_of(send()) == {}


def test_every_setting_arrives_under_its_own_name() -> None:
    arguments = send(
        *("--compression", "zstd:3", "--workers", "4", "--buffer-memory", "64MiB", "--batch-size", "1000"),
        *("--linger-ms", "20", "--acks", "all", "--option", "client_id=7", "--option", "max_block_ms=9"),
    )
    assert settings_of(arguments) == {
        "compression_type": "zstd",
        "compression_level": 3,
        "workers": 4,
        "buffer_memory": "64MiB",
        "batch_size": 1000,
        "linger_ms": 20,
        "acks": 0 if arguments.acks == "0" else "all",
        "client_id": "7",  # a text setting stays text
        "max_block_ms": 9,
    }


def test_the_compression_level_is_optional_and_may_be_negative() -> None:
    assert settings_of(send("--compression", "lz4")) == {"compression_type": "lz4"}
    assert settings_of(send("--compression", "zstd:-5"))["compression_level"] == -5


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("linger_ms", "write NAME=VALUE"),
        ("=5", "write NAME=VALUE"),
        ("workers=2", "workers is already 'auto'; give it once"),
        ("bootstrap_servers=a:1", "use --bootstrap-server"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(send("--workers", "auto", "--option", option))


@pytest.mark.parametrize(
    ("text", "separator"), [(":", b":"), (r"\t", b"\t"), (r"\\", b"\\"), (r"\x00", b"\0"), ("→", "→".encode())]
)
def test_a_separator_may_be_written_with_escapes(text: str, separator: bytes) -> None:
    assert send("--key-separator", text).key_separator == separator


def test_files_may_stand_before_and_behind_options() -> None:
    assert parse(["send", "--crlf", "t", "a", "--bootstrap-server", "h:1", "b", "-"]).files == ["a", "b", "-"]
    assert send().files == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: {send,plan,settings,demo}"),
        (["fly"], "'fly'"),
        (["send"], "required: TOPIC, --bootstrap-server"),
        (["send", "t"], "--bootstrap-server"),
        ([*SEND, "--colour"], "unrecognized arguments: --colour"),
        (["plan", "word"], "unrecognized arguments: word"),
        (["plan", "--buffer", "1"], "unrecognized arguments: --buffer 1"),
        ([*SEND, "--partition", "x"], "'x'"),
        ([*SEND, "--partition", "-1"], "partitions are numbered from 0"),
        ([*SEND, "--key-separator", ""], "it is empty"),
        ([*SEND, "--key-separator", "\n"], "newline"),
        ([*SEND, "--missing-key", "null"], "give --key-separator"),
        ([*SEND, "--compression", "zstd:99"], "levels"),
        ([*SEND, "--option", "linger=5"], "did you mean linger_ms"),
        ([*SEND, "--option", "linger_ms=soon"], "linger_ms is 'soon'"),
        ([*SEND, "--acks", "2"], "acks is 2"),
        (["send", "t", "--bootstrap-server", "nowhere"], "'nowhere' is not host:port"),
        (["send", "no such", "--bootstrap-server", "h:1"], "not a name that Kafka allows"),
        (["demo", "--records", "0"], "at least 1"),
        (["plan", "--buffer-memory", "1KiB"], "too small"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    ended = slabpress(*arguments)
    assert (ended.code, ended.out, len(ended.errors)) == (2, "", 1)
    assert ended.errors[0].startswith("slabpress: ")
    assert says in ended.errors[0]


def test_version_and_help() -> None:
    assert slabpress("--version")[:2] == (0, "slabpress 0.1.0\n")
    for command in ("send", "plan", "demo"):
        ended = slabpress(command, "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"usage: slabpress {command}")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys; from slabpress.cli.options import parse; parse(['plan']); print(*sys.modules)"
    (tmp_path / "program.py").write_text(program)
    import subprocess
    import sys

    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=30)
    loaded = set(done.stdout.split())
    assert "slabpress.cli.options" in loaded
    assert not loaded & {"msgspec", "psutil", "confluent_kafka", "slabpress.producer", "slabpress._native"}
