"""A process that does what it is told: an order is a line of JSON on its stdin, the answer one on its stdout.

An answer is ``{"ok": result}`` or ``{"error": text}``; the first, unasked for, says that the process is ready. It ends
with its stdin.
"""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from tests.support.kafka_install import spawn

ANSWER_TIMEOUT_S = 20.0


class Ordered:
    """A program in a process of its own, which ends with this one.

    Attributes:
        what: the program's name in errors.
        error: what is raised when it refuses an order or has died.
        ready: its first answer.
    """

    what: ClassVar[str]
    error: ClassVar[type[Exception]]

    def __init__(self, command: Sequence[str]) -> None:
        self._process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.ready: Any = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.terminate()
        self._process.wait()

    def order(self, line: object) -> Any:
        """Say this, as JSON, and return the answer."""
        assert self._process.stdin is not None  # told to be a pipe
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # told to be a pipe
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        if not ready:
            raise self.error(f"{self.what} gave no answer within {ANSWER_TIMEOUT_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise self.error(answer["error"])
        return answer["ok"]

    def _died(self) -> Exception:
        return self.error(f"{self.what} has ended, exit code {self._process.wait()}")
