"""The embedded broker: noida-db from PyPI, for the demo and for tests that need no Java.

    with EmbeddedBroker() as broker:
        Producer(broker.bootstrap_server)

It listens on a free port of the loopback interface and keeps its data in a temporary folder. Its guard rails:
create topics explicitly (automatic ones have one partition) with ``retention.ms=-1`` if their records are older
than a week, and keep what is read back below about 95 MB of compressed bytes, for it ignores fetch limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from slabpress.cli.outcome import CommandError

_START_TIMEOUT_S: Final = 15.0
_END_TIMEOUT_S: Final = 5.0
_ADDRESS: Final = re.compile(r"\bkafka\s+(127\.0\.0\.1:\d+)")
# The dynamic loader of glibc before 2.39 says this of the binary, and it does no harm.
_LOADER_WARNING: Final = "weak version `GLIBC_"
_PR_SET_PDEATHSIG: Final = 1
_TAIL_LINES: Final = 20


class EmbeddedBroker:
    """A broker that runs while the ``with`` block does, and no longer, however the block ends.

    On Linux it dies even if this process is killed: with the thread that entered the block.

    Attributes:
        bootstrap_server: its address.
        pid: its process.

    Raises:
        CommandError: it is not installed, or it did not start; its own words are in the message.
    """

    def __init__(self) -> None:
        self.bootstrap_server = ""
        self.pid = 0
        self._undo = contextlib.ExitStack()
        self._said: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ready = threading.Event()  # it has told its address, or nothing more will come

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="slabpress-broker-"))
            self._start(undo, folder)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _start(self, undo: contextlib.ExitStack, folder: str) -> None:
        command = [find_noida_db(), "start", "--only", "kafka", "--host", "127.0.0.1", "--kafka-port", "0"]
        process = subprocess.Popen(
            [*command, "--data-dir", str(Path(folder) / "data")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal is for us: the broker goes when the producer has closed. PyPI's start
            # script is a second process, which would not pass a signal on: so the whole group is ended.
            start_new_session=True,
            preexec_fn=_dies_with_parent(),  # two system calls, nothing of Python's
        )
        self.pid = process.pid
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        listener = threading.Thread(target=self._listen, args=(process.stdout,), name="broker-output", daemon=True)
        undo.callback(process.stdout.close)  # these are called in reverse
        undo.callback(listener.join, _END_TIMEOUT_S)
        undo.callback(_end, process)
        listener.start()
        if self._ready.wait(_START_TIMEOUT_S) and not self.bootstrap_server:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)  # it has closed its output, so it is ending
        if not self.bootstrap_server:
            code = process.poll()
            how = f"did not start within {_START_TIMEOUT_S:.0f} s" if code is None else f"ended with exit code {code}"
            said = " | ".join(self._said) or "nothing"
            raise CommandError(f"the embedded broker {how}; it said: {said}. Name another with --bootstrap-server")

    def _listen(self, output: IO[str]) -> None:
        """Read what it says for as long as it lives, so that it never waits for us."""
        for line in output:
            if _LOADER_WARNING in line:
                continue
            self._said.append(line.strip())
            found = _ADDRESS.search(line)
            if found and not self.bootstrap_server:
                self.bootstrap_server = found[1]
                self._ready.set()
        self._ready.set()


def find_noida_db() -> str:
    """The path of the broker's program: inside its package, beside the interpreter, or on PATH.

    Raises:
        CommandError: it is nowhere.
    """
    spec = importlib.util.find_spec("noida_db")
    folders = [Path(folder) for folder in ((spec.submodule_search_locations if spec else None) or ())]
    for folder in (*folders, Path(sys.executable).parent):
        program = folder / "noida-db"
        if os.access(program, os.X_OK):
            return str(program)
    on_path = shutil.which("noida-db")
    if on_path is None:
        raise CommandError(
            "the embedded broker is not installed: `pip install noida-db==0.2.3` (part of slabpress[demo]), or name "
            "a broker with --bootstrap-server"
        )
    return on_path


def _dies_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the broker, so that the kernel ends it when its parent dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return prepare


def _end(process: subprocess.Popen[str]) -> None:
    """End the broker's process group, politely first, and reap it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_S)
