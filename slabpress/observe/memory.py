"""What a process takes, the arena apart."""

from __future__ import annotations


def process_bytes(pid: int) -> int:
    """The bytes that a process stands for, without shared memory such as the arena; 0 if it has ended.

    That is PSS, which shares out among processes what they have in common, less its shared memory: processes
    cannot all be read at one instant, and while they start, pages of the arena would be counted for several of
    them; and PSS knows no page that is allocated but not touched yet. Where there is no such figure it is USS.
    """
    try:
        # Not by pathlib: it interns the parts of every path, and Python's table of them grows with it.
        with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        text = ""
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    if "Pss_Shmem" in figures:
        return figures["Pss"] - figures["Pss_Shmem"]
    import psutil  # loaded where it is needed only: Linux tells by itself

    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
