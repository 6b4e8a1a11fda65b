"""A producer whose records go nowhere: no process, no network; what it has sealed is thrown away between two clocks."""

from __future__ import annotations

import time
from typing import Final

from slabpress.config import Config
from slabpress.footprints import process_lines
from slabpress.pipeline.coordinator import Coordinator
from slabpress.producer import Producer
from slabpress.shm import layout as at
from slabpress.shm.descriptors import Descriptors, Result
from slabpress.shm.states import DONE, FREE, READY, SEALED, SLAB_FREE
from slabpress.shm.topics import TopicTable

# What is measured here runs callbacks of some microseconds, a few thousand batches of them.
CALLBACKS_S: Final = 30.0
_DELIVERED = Result(0, -1, 0, -1, retriable=False, text="")


class ChildlessProducer(Producer):
    """A producer whose records stay in the arena until ``drain``."""

    @staticmethod
    def _processes(config: Config) -> Coordinator:
        return Coordinator([], config.workers, process_lines(config, config.workers))

    def know_topic(self, name: str, partitions: int) -> None:
        """Answer for a topic as the network process would."""
        session = self._session
        table = TopicTable(session.arena)
        with session.lock:
            session._topics.want(name)
            table.set_answer(table.wanted()[name], partitions, 0)
            session._topics.refresh()

    def drain(self) -> None:
        """Say of every record that it was delivered, and have all slabs and descriptors free again."""
        session = self._session
        arena, accumulator = session.arena, session.accumulator
        descriptors = Descriptors(arena)
        with session.lock:
            accumulator.seal_all()
            for state in (SEALED, READY):
                for index in arena.batch_states.find_all(state):
                    arena.slabs.mark(descriptors.sealed(index).first_slab, SLAB_FREE)
                    descriptors.set_result(index, _DELIVERED)
                    arena.batch_states.store(index, DONE)
            arena.memory.store_u64(at.SEAL_HEAD_AT, arena.seal_tail)
        session.turn()
        deadline = time.monotonic() + CALLBACKS_S
        while accumulator.has_unfinished():  # callbacks are still running
            if time.monotonic() > deadline:
                states = arena.batch_states
                raise TimeoutError(
                    f"drain(): {states.count - states.tally(1)[FREE]} of {states.count} batch descriptors not free "
                    f"within {CALLBACKS_S:g} s: a delivery callback has not returned, or reporting has stopped"
                )
            time.sleep(0.001)
