"""What was planned beside what is taken; and what is taken now beside what was taken before."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from slabpress.footprints import COORDINATOR, KERNEL
from tests.integration.memory.watch import RunningJob, Sampler, State, Taken, taken

SHARED: Final = ("arena", "control block")
# A heap keeps some pages more when sizes come in another order, and the collector's turn comes when it comes: measured
# after the warm-up, up to 260 KiB in any process. It does not add up: 600,000 batches leave no more than 10,000.
ALLOWANCE_BYTES: Final = 512 << 10

Between = Callable[[State, Sampler], None]


class Figure(NamedTuple):
    """One part of a plan.

    Attributes:
        part: "network process", "worker 0", ..., "coordinator", "kernel".
        planned: its lines of the plan, in bytes.
        measured: the most that it took at any moment.
    """

    part: str
    planned: int
    measured: int

    def __str__(self) -> str:
        planned, measured = self.planned / 2**20, self.measured / 2**20
        return f"{self.part:16} planned {planned:7.2f}  measured {measured:7.2f}  margin {planned - measured:6.2f} MiB"


class Held(NamedTuple):
    """A load that has come to its end.

    Attributes:
        figures: each part's.
        lines: names and bytes of the plan's lines.
        facts: the last that the job told.
    """

    figures: list[Figure]
    lines: list[tuple[str, int]]
    facts: State

    def __str__(self) -> str:
        return "\n".join(map(str, self.figures))


def settings_of(codec: str, level: int | None = None, **more: Any) -> State:
    """The settings of a producer with two workers, or as many as it says."""
    return {"compression_type": codec, "compression_level": level, "workers": 2} | more


@functools.cache
def own(large_bytes: int) -> Taken:
    """What a job takes without slabpress: an interpreter, the values that it would send, and its own code."""
    with RunningJob(None, large_bytes=large_bytes) as job:
        job.reads("ready")
        found = taken(job.process.pid)
        assert found is not None
        job.finish()
    return found


def hold(load: str, between: Between | None = None, **order: Any) -> Held:
    """Run a load to its end, looking at its processes all the while.

    Args:
        load: which, see loads.py.
        between: called where the job stops.
        order: what the load asks for.
    """
    alone = own(order.get("large_bytes", 0))
    with RunningJob(load, **order) as job, Sampler(job) as sampler:
        started = job.started()
        while (state := job.reads("stop", "full", "finished"))["at"] != "finished":
            assert between is not None
            between(state, sampler)
            job.go()
        sampler.look()
        family = len(job.pids)
        job.finish()
    most = sampler.most
    measured = {name: figures.alone(family) for name, figures in most.items()}
    # Of the job what it would not take without slabpress; all of a file that only slabpress has mapped.
    job_took = most[COORDINATOR]
    more = job_took.anonymous - alone.anonymous + job_took.files - alone.files
    measured[COORDINATOR] = max(more, job_took.pss - alone.pss)
    # Of the kernel's lines the page tables: what it keeps of sockets is not to be seen from here.
    measured[KERNEL] = sum(figures.page_tables for figures in most.values()) - alone.page_tables
    planned = {name: amount for name, amount in started["planned"].items() if name not in SHARED}
    assert planned.keys() == measured.keys()
    held = Held([Figure(name, amount, measured[name]) for name, amount in planned.items()], started["lines"], state)
    sys.stdout.write(f"{load} {order.get('settings')}, {sampler.samples} samples\n{held}\n")
    return held


def check(held: Held) -> None:
    """Assert that nothing took more than was planned, and that all was delivered."""
    over = [str(figure) for figure in held.figures if figure.measured > figure.planned]
    assert not over, over
    assert held.facts["accepted"] == held.facts["delivered"] > 0


class Course:
    """What each process of a job took, round by round.

    Args:
        job: the job.
        warm_up: how many rounds are not compared.

    Attributes:
        rounds: how many there were.
    """

    def __init__(self, job: RunningJob, warm_up: int) -> None:
        self._job = job
        self._warm_up = warm_up
        self.rounds = 0
        self.taken: dict[str, list[int]] = {name: [] for name in job.pids}

    def look(self) -> None:
        """Look at every process once, at the end of a round.

        At what it has allocated for itself: the files that it has mapped are no growth, and change with whoever else
        runs here.
        """
        self.rounds += 1
        for name, pid in self._job.pids.items():
            now = taken(pid)
            assert now is not None, f"{name} has ended"
            self.taken[name].append(now.anonymous)

    def growth(self) -> dict[str, int]:
        """By how much the median of each process's last looks is above that of the first after the warm-up."""
        found = {}
        for name, every in self.taken.items():
            warm = every[self._warm_up :]
            some = max(3, len(warm) // 4)
            assert len(warm) >= 2 * some, f"{len(warm)} rounds after the warm-up are too few"
            found[name] = round(statistics.median(warm[-some:]) - statistics.median(warm[:some]))
        return found


def check_growth(course: Course) -> None:
    """Assert that no process took more at the end than after the warm-up."""
    growth = course.growth()
    sys.stdout.write(f"growth in KiB: { ({name: amount >> 10 for name, amount in growth.items()}) }\n")
    grown = {name: course.taken[name] for name, amount in growth.items() if amount > ALLOWANCE_BYTES}
    assert not grown, grown
