"""The coordinator: one set of processes, the producers that share it, and the background thread.

    caller threads                 "slabpress" thread                       "slabpress-callbacks", one a producer
    send(): append under the       sleeps on its doorbell until the next    sleeps until there are results, takes
    lock, wait in line for room    linger; goes round the sessions: seals   them in, runs callbacks, then frees
                                   what has lingered, takes in metadata,    the batches' descriptors
                                   and results where no callback thread
                                   sleeps for them; calls the first in
                                   line; looks after the children

Law 9: nothing here is on the way of a sealed batch to the broker; when the job holds the GIL for seconds,
workers and network process go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from typing import Final

from slabpress.config import Config
from slabpress.errors import ProcessError, ProducerClosedError
from slabpress.footprints import ARENA, CONTROL, PlanLine
from slabpress.observe.memory import process_bytes
from slabpress.observe.statistics import MemoryFigure, Statistics
from slabpress.pipeline.child import Role
from slabpress.pipeline.preparations import arena_settings, closed_error, forked_error
from slabpress.pipeline.session import Session
from slabpress.pipeline.supervisor import END_TIMEOUT_S, Supervisor
from slabpress.pipeline.watch import DoneCallback
from slabpress.plan import MemoryPlan, PipelinePlan
from slabpress.shm.control import CONTROL_BYTES, COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.shm.handover import ArenaGrant
from slabpress.shm.states import PROCESS_RUNNING

_JOIN_TIMEOUT_S: Final = 10.0

logger = logging.getLogger("slabpress")


class Coordinator:
    """A set of processes, and the sessions of the producers that share it.

    Args:
        roles: the children to start.
        workers: how many of them compress.
        lines: the part of the memory plan that the processes take, whatever the producers.
    """

    def __init__(self, roles: list[Role], workers: int, lines: tuple[PlanLine, ...]) -> None:
        self._lines = lines
        self._lock = threading.Lock()  # guards the two tuples, and the arenas' ends against a recovery
        self._sessions: tuple[Session, ...] = ()
        self._leaving: tuple[Session, ...] = ()
        self._numbers = 0
        self._stopping = False
        self._failure: ProcessError | None = None
        self._forked = False
        self._workers = workers
        self.control = Control.create(workers)
        self._supervisor = Supervisor(self.control, roles, self._recover)
        self._thread = threading.Thread(target=self._run, name="slabpress", daemon=True)
        self.control.set_state(COORDINATOR, PROCESS_RUNNING)
        _live.add(self)

    def start(self) -> None:
        """Start the children and the background thread.

        Raises:
            ProcessError: a child could not start; none is left running, and everything was given back.
        """
        try:
            self._supervisor.start()
            self._thread.start()
        except BaseException:
            self._supervisor.kill()
            for session in self._sessions:
                session.stop_callbacks(_JOIN_TIMEOUT_S)  # it sleeps on the arena
                session.arena.close()
            self.control.close()
            raise

    def open(self, config: Config, plan: MemoryPlan, on_delivery: DoneCallback | None) -> Session:
        """Make the arena of one producer more, and have the children serve it.

        Raises:
            MemoryShortError: the planned memory is not there.
            ProcessError: the processes have failed.
        """
        with self._lock:
            if self._failure is not None:
                raise ProcessError(*self._failure.args)
            if self._stopping:
                raise ProducerClosedError("the pipeline is closed: make another one")
            session = Session(self._numbers, config, plan, self.control, on_delivery)
            self._numbers += 1
            self._sessions = (*self._sessions, session)
        grant = ArenaGrant(session.number, session.arena.descriptor, arena_settings(config, plan))
        self._supervisor.add_arena(grant)
        return session

    # --- the background thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            children_call = True
            while not self._stopping:
                for session in self._sessions:
                    session.turn()
                self._look_who_has_let_go()
                # Three system calls a child: too many for every turn, of which there may be one a record.
                if children_call or self._supervisor.next_time() is not None:
                    self._supervisor.check()
                children_call = self._sleep()
        except ProcessError as error:
            self._fail(error)
        except Exception as error:  # a bug here must not leave callers waiting in silence
            logger.exception("the coordinator's thread failed")
            self._fail(ProcessError(f"slabpress failed inside: {error!r}; please report it"))

    def _sleep(self) -> bool:
        """Wait until something is due or somebody rings; whether a child has died or said something."""
        control, alarm = self.control, self.control.alarm
        alarm.forget()
        control.lie_down(COORDINATOR)
        times = [session.rest() for session in self._sessions]
        times.append(self._supervisor.next_time())
        self._look_who_has_let_go()
        due = min((time_s for time_s in times if time_s is not None), default=None)
        if self._stopping:
            due = 0.0
        if due is not None:
            alarm.set(int(due * 1e9), ring=False)
        try:
            return bool(alarm.wait(self._supervisor.watched))
        finally:
            control.get_up(COORDINATOR)

    def _look_who_has_let_go(self) -> None:
        """Tell those who close a producer once no child has its arena mapped any more.

        A child says "not mine any more" in the arena, and only then unmaps it: so its count of arenas is looked at as
        well, less those that it still holds for others that are closed.
        """
        leaving = self._leaving  # once: others come and go in other threads
        if not leaving:
            return
        slots = range(NETWORK, len(self.control.bells))
        attached = {session: session.attached() for session in leaving}
        for session in leaving:
            others = [slots_of for other, slots_of in attached.items() if other is not session]
            if not attached[session] and all(
                self._supervisor.has_let_go(slot, len(self._sessions) + sum(slot in held for held in others))
                for slot in slots
            ):
                session.let_go.set()

    def _recover(self, slot: int) -> bool:
        """A child has died: nothing of any arena is its own any more. False: come again."""
        with self._lock:
            recovered = True
            for session in (*self._sessions, *self._leaving):
                session.detach_dead(slot)
                if slot != NETWORK and not session.is_closed:
                    recovered &= session.recover(slot - FIRST_WORKER)
            return recovered

    def _fail(self, error: ProcessError) -> None:
        """The processes cannot go on: end them; every call and every undelivered record gets the error."""
        with self._lock:
            self._failure = error
            sessions = (*self._sessions, *self._leaving)
        self._supervisor.kill()
        for session in sessions:
            session.fail(error)
            session.let_go.set()

    # --- the end ------------------------------------------------------------------------------------------------

    def leave(self, session: Session) -> int:
        """End one producer's session, the others go on; how many of its records were lost by that.

        The producer refuses calls already. The children let its arena go first: the network process as soon as no
        socket takes bytes from it any more (law 7).
        """
        with self._lock:
            if session.is_closed:
                return 0  # the pipeline was closed meanwhile
            self._sessions = tuple(other for other in self._sessions if other is not session)
            self._leaving = (*self._leaving, session)
        self._supervisor.remove_arena(session.number)
        self.control.bells[COORDINATOR].ring()
        if self._failure is None and not session.let_go.wait(END_TIMEOUT_S):
            logger.warning("a closed producer's memory is still in use by %s", self._holders(session))
        lost = self._finish(session)
        with self._lock:
            self._leaving = tuple(other for other in self._leaving if other is not session)
        return lost

    def _holders(self, session: Session) -> str:
        attached, arenas = session.attached(), len(self._sessions)
        slots = ((child.role.slot, child.role.name) for child in self._supervisor.children)
        return ", ".join(
            name for slot, name in slots if slot in attached or not self._supervisor.has_let_go(slot, arenas)
        )

    def close(self) -> int:
        """End children and thread and give all memory back; how many records were lost. Have producers refuse first."""
        with self._lock:
            self._stopping = True
        for session in self._sessions:
            session.refuse(closed_error)  # a producer that was made while its pipeline was being closed
        with contextlib.ExitStack() as steps:  # from the last to the first, whatever one of them raises
            steps.callback(self.control.close)
            try:
                self.control.bells[COORDINATOR].ring()
                self._thread.join(_JOIN_TIMEOUT_S)
            finally:
                self._supervisor.stop()
            lost = 0
            for session in self._sessions:
                lost += self._finish(session)
            return lost

    def _finish(self, session: Session) -> int:
        """The end of a session that no child works for any more."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._give_back, session)
            steps.callback(session.stop_callbacks, _JOIN_TIMEOUT_S)
            session.take_results()  # those that came in while the children ended still count
            return session.abandon("PRODUCER_CLOSED", "the producer was closed before they were acknowledged")

    def _give_back(self, session: Session) -> None:
        memory = self.memory()
        with self._lock:
            session.give_back(memory)

    # --- figures ------------------------------------------------------------------------------------------------

    def plan(self) -> PipelinePlan:
        """Every byte that the processes and the producers that share them take now."""
        return PipelinePlan.of(self._workers, self._lines, [session.plan for session in self._sessions])

    def memory(self) -> tuple[MemoryFigure, ...]:
        """What was planned beside what is taken now, of all processes and of all producers that share them."""
        planned = self.plan().by_part()
        measured: dict[str, int | None] = {
            ARENA: sum(session.plan.arena_bytes for session in self._sessions if not session.is_closed),
            CONTROL: CONTROL_BYTES,
        }
        for name, pid in self._supervisor.processes():
            measured[name] = process_bytes(pid)
        return tuple(MemoryFigure(name, amount, measured.get(name)) for name, amount in planned.items())

    def statistics(self, session: Session) -> Statistics:
        """A producer's figures of this moment; after it was closed, the last ones."""
        return session.statistics(self.memory())

    # --- forks --------------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """This process is a forked child: refuse every call, touch nothing that the parent uses."""
        self._forked = True
        for session in self._sessions:
            session.sender.refuse(forked_error)
            session.watch.forked = True

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child of the process that made it."""
        return self._forked


_live: weakref.WeakSet[Coordinator] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for coordinator in _live:
        coordinator.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
