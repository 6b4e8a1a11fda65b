"""What is in the arenas of a process that hangs, read through its descriptors: for a report on what went wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from slabpress.network.sequences import Sequences
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import BATCH_STATES, FREE, OUTPUT_STATES, SLAB_STATES, STATE_MASK
from slabpress.shm.topics import TopicTable

_ARENA: Final = "/memfd:slabpress-arena"
_BATCHES: Final = 40


def arenas_of(pid: int) -> list[str]:
    """Each arena of a process in some lines."""
    seen: set[int] = set()
    told = []
    for link in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda link: int(link.name)):
        try:
            if not str(link.readlink()).startswith(_ARENA) or link.stat().st_ino in seen:
                continue
            seen.add(link.stat().st_ino)
            arena = Arena.attach(os.open(link, os.O_RDWR | os.O_CLOEXEC))
        except (OSError, ValueError) as error:
            told.append(f"descriptor {link.name}: {error}")
            continue
        try:
            told.append(_describe(arena))
        finally:
            arena.close()
    return told


def _describe(arena: Arena) -> str:
    states = [arena.batch_states.load(index) for index in range(arena.batch_states.count)]
    lines = []
    lines.append(
        f"arena: sealed {arena.seal_tail}, admitted {arena.seal_head}, "
        f"batches {_tally(states, BATCH_STATES)}, slabs {_words(arena, SLAB_STATES, slabs=True)}, "
        f"outputs {_words(arena, OUTPUT_STATES, slabs=False)}"
    )
    descriptors, sequences, topics = Descriptors(arena), Sequences(arena), TopicTable(arena)
    used = [index for index, state in enumerate(states) if state != FREE]
    for index in sorted(used, key=descriptors.seal_number)[:_BATCHES]:
        sealed, output = descriptors.sealed(index), descriptors.output(index)
        topic, number = topics.partition(sealed.partition_index)
        where = f"{topics.name(topic)}-{number}"
        lines.append(
            f"  {BATCH_STATES[states[index]]} {index}: seal {descriptors.seal_number(index)}, {where}, "
            f"{sealed.records} records, worker {descriptors.worker(index):#x}, deaths {descriptors.deaths(index)}, "
            f"attempts {descriptors.attempts(index)}, payload {output.payload_bytes}, "
            f"as {sequences.assigned(index, sealed.partition_index)}"
        )
    return "\n".join(lines)


def _words(arena: Arena, names: tuple[str, ...], *, slabs: bool) -> dict[str, int]:
    words = arena.slab_states if slabs else arena.output_states
    return _tally([words.load(index) & STATE_MASK for index in range(words.count)], names)


def _tally(states: list[int], names: tuple[str, ...]) -> dict[str, int]:
    return {name: states.count(state) for state, name in enumerate(names) if state in states}


if __name__ == "__main__":
    sys.stdout.write("\n".join(arenas_of(int(sys.argv[1]))) + "\n")
