"""Results taken in: from the arena's descriptors to handles and callbacks, and the descriptors given back.

Two threads of the job do it. The callback thread, where there is one, sleeps until there are results, and whoever has
them (the network process) wakes it alone: one wake-up, one wait for the interpreter's lock, from the result to the
callback. While it runs callbacks, which may take long, or where there is none, the coordinator's thread is rung
instead; and that looks for results whenever it comes by, so a wake-up that was lost costs a second (``_NUDGE_S``).

    network process: result, DONE, fence --- callback thread asleep? wake it --- else ring the coordinator
    callback thread: "I sleep", fence, results? -> sleep -> "I am awake", fence, take all there are, run callbacks

Batches that were delivered, nearly all, are settled natively, one step each (native/arrivals.pxi). What is here is for
those that failed or were split.

``_taking`` is held from the look at the states until callbacks are queued. Without it a batch that one thread took
first could be reported after a later one of its topic-partition, or abandoned and reported as well.
"""

from __future__ import annotations

from slabpress._native import Mutex
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.pressure import Pressure
from slabpress.pipeline.reporter import Reporter, abandoned, outcome_of
from slabpress.pipeline.room import RoomLine
from slabpress.pipeline.watch import DoneCallback, Watch
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.splits import Splits
from slabpress.shm.states import OVERSIZE


class Intake:
    """What became of one producer's batches.

    Args:
        arena: where it is written.
        control: whom to wake.
        lock: the producer's lock.
        accumulator: the batches.
        pressure: whether room is worth a call.
        line: who waits for room, which a result may have made.
        watch: who waits for results.
        on_delivery: called with the handle of every record, or None.

    Attributes:
        reporter: tells of them.
        failure: what went wrong with taking them in, in the callback thread; the coordinator's is to say so.
    """

    def __init__(
        self,
        arena: Arena,
        control: Control,
        lock: Mutex,
        accumulator: Accumulator,
        pressure: Pressure,
        line: RoomLine,
        watch: Watch,
        on_delivery: DoneCallback | None,
    ) -> None:
        self._arena = arena
        self._control = control
        self._lock = lock
        self._accumulator = accumulator
        self._pressure = pressure
        self._line = line
        self._descriptors = Descriptors(arena)
        self._splits = Splits(arena)
        # One that says so where its own thread takes it again: a signal handler may close a producer that is closing.
        self._taking = Mutex()
        self.failure: Exception | None = None
        self.reporter = Reporter(watch, on_delivery, self._release, self, arena.results_sleeper)

    # --- for the callback thread --------------------------------------------------------------------------------

    def has_results(self) -> bool:
        """Whether there is anything to take in."""
        with self._lock:
            if self._arena.descriptor < 0 or self.failure is not None:
                return False
            return self._accumulator.has_results()

    def take_or_tell(self) -> None:
        """As ``take``; what goes wrong is the coordinator's to tell, for it ends the producer and nobody waits on."""
        try:
            if not self._accumulator.arrivals.take_lone(
                self._taking, self._lock, self._line.turns, self.reporter.queue, self.reporter.calls_all
            ):
                self.take()
        except Exception as error:  # noqa: BLE001 - raised by the coordinator's thread
            self.failure = error
            self._control.bells[COORDINATOR].ring()

    # --- for both -----------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take in what has come in by now, and call who waits for room."""
        with self._taking:
            with self._lock:
                if self._arena.descriptor < 0:
                    return
                settled, left = self._accumulator.arrivals.settle(self.reporter.queue, self.reporter.calls_all)
                taken = self._accumulator.take_done() if left else []
                outcomes = [(batch, self._outcome(batch)) for batch in taken]
                if self._splits.any_ever():
                    self._take_pieces()
                if self._line.turns:
                    self.call_first()
            if settled:
                self.reporter.tell_of_settled()
            if outcomes:
                self.reporter.resolve(outcomes)

    def _outcome(self, batch: Batch) -> Outcome:
        return outcome_of(batch, self._descriptors.result(batch.descriptor), batch.records_left)

    def _take_pieces(self) -> None:
        """Take in the results of pieces of split batches, and ask for what comes after them."""
        for batch in self._accumulator.partial():
            descriptor = batch.descriptor
            split = self._splits.get(descriptor)
            records = split.piece_records
            outcome = outcome_of(batch, self._descriptors.result(descriptor), records)
            batch.resolve_piece(records, outcome)
            self._splits.go_on(descriptor, delivered=outcome.error is None)
            self._accumulator.learn_limit(batch, split)
            self._arena.batch_states.store(descriptor, OVERSIZE)
            self._control.wake_one_worker()

    def call_first(self) -> None:
        """Let the first in line look for room, if it is worth it. The caller holds the producer's lock."""
        if self._line.turns and not self._pressure.is_more_room_coming():
            self._line.call_first()

    def _release(self, batches: list[Batch]) -> None:
        """Give the descriptors of batches back that everybody was told of."""
        with self._lock:
            if self._arena.descriptor < 0:
                return  # a callback that outlived close()
            for batch in batches:
                self._accumulator.release(batch)
            if self._line.turns:
                self.call_first()

    # --- the end ------------------------------------------------------------------------------------------------

    def abandon(self, name: str, reason: str) -> int:
        """Resolve every batch that has no result with an error; how many records that were.

        No child works on the arena any more.
        """
        with self._taking:
            with self._lock:
                left = [batch for batch in self._accumulator.unfinished() if batch.outcome is None]
            lost = sum(batch.records_left for batch in left)
            self.reporter.resolve([(batch, abandoned(batch, name, reason)) for batch in left])
        return lost
