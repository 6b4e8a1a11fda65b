"""What a process and all that it started take, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil


class Memory(NamedTuple):
    """Memory of a tree of processes.

    Attributes:
        total_bytes: the sum of PSS, shared memory counted once.
        pss_bytes: the sum of PSS as it was read. Processes cannot be read at one instant: while some of them start or
            end, memory that they share is counted more than once here, or not fully.
        data_bytes: the total without pages of files. Those of the interpreter and of libraries are shared with other
            programs on the machine, so that what is counted of them changes when such a program starts or ends.
    """

    total_bytes: int
    pss_bytes: int
    data_bytes: int


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; none if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def tree_memory(pid: int) -> Memory:
    """The memory of the process and all its descendants; zeros if it has ended."""
    pss = own = data = shared = 0
    for process in process_tree(pid):
        rollup = _fields(process.pid, "smaps_rollup")
        pss += rollup.get("Pss", 0)
        own += rollup.get("Pss", 0) - rollup.get("Pss_Shmem", 0)
        data += rollup.get("Pss_Anon", 0)
        # Whoever maps most of the shared memory maps all of it: in slabpress the job maps every arena.
        shared = max(shared, _fields(process.pid, "status").get("RssShmem", 0))
    return Memory(own + shared, pss, data + shared) if own else Memory(0, 0, 0)


def _fields(pid: int, name: str) -> dict[str, int]:
    """The fields of a file of /proc that are in kB, in bytes; none if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.endswith(" kB")]
    return {word[0].rstrip(":"): int(word[1]) * 1024 for word in words}
