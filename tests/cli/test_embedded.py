"""The embedded broker's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from slabpress.cli import embedded
from slabpress.cli.embedded import EmbeddedBroker
from slabpress.cli.outcome import CommandError
from tests.cli.rig import DEADLINE_S, Cluster

HOLDER = """
import sys
from slabpress.cli.embedded import EmbeddedBroker
with EmbeddedBroker() as broker:
    print(broker.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_runs_as_long_as_the_block_and_leaves_nothing(temporary: Path) -> None:
    with EmbeddedBroker() as broker:
        assert Cluster(broker.bootstrap_server).new_topic(2)
        assert psutil.pid_exists(broker.pid)
        assert list(temporary.iterdir())
    assert not psutil.pid_exists(broker.pid)
    assert list(temporary.iterdir()) == []


def test_it_ends_when_the_block_fails(temporary: Path) -> None:
    broker = EmbeddedBroker()
    with pytest.raises(KeyboardInterrupt), broker:
        raise KeyboardInterrupt
    assert not psutil.pid_exists(broker.pid)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_it_does_not_outlive_a_killed_program(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # nobody removes its folder
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        broker = psutil.Process(int(holder.stdout.readline()))
        holder.send_signal(signal.SIGKILL)
        # Nobody here is its parent: it is gone, or a zombie until init or a reaper looks.
        assert holder.wait(DEADLINE_S) == -signal.SIGKILL
        gone, _ = psutil.wait_procs([broker], timeout=5.0)
        assert gone or broker.status() == psutil.STATUS_ZOMBIE


def program(folder: Path, text: str) -> str:
    path = folder / "noida-db"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_broker_that_ends_at_once_is_said_with_its_words(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = program(temporary, 'echo "x: weak version \\`GLIBC_2.39\' not found" >&2; echo no luck >&2; exit 3')
    monkeypatch.setattr(embedded, "find_noida_db", lambda: fake)
    with pytest.raises(CommandError) as caught, EmbeddedBroker():
        pass
    assert str(caught.value) == (
        "the embedded broker ended with exit code 3; it said: no luck. Name another with --bootstrap-server"
    )
    assert [path.name for path in temporary.iterdir()] == ["noida-db"]


def test_a_broker_that_tells_no_address_is_ended(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Like PyPI's start script it is two processes, and a signal to the first alone would leave the second.
    fake = program(temporary, 'trap "" TERM; echo hello; sleep 600; echo bye')
    monkeypatch.setattr(embedded, "find_noida_db", lambda: fake)
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(embedded, "_END_TIMEOUT_S", 0.5)
    with pytest.raises(CommandError, match=r"did not start within 0 s; it said: hello\."), EmbeddedBroker():
        pass


def test_a_broker_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"pip install noida-db==0\.2\.3"):
        embedded.find_noida_db()
