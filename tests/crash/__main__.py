"""``python -m tests.crash --minutes 10 --seed 7``: torment the producer, then count what was lost."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time

from tests.crash.brokers import BROKERS, CONFIG
from tests.crash.driver import Driver, say_on_stdout
from tests.crash.plan import KINDS
from tests.crash.report import report
from tests.support.kafka import KafkaCluster, missing_tool

_QUICK_MINUTES = 2.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are done (10)")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_MINUTES:g} minutes")
    parser.add_argument("--seed", type=int, help="decides kinds, times and records; drawn and told unless given")
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}, or none; separated by commas; all unless given")
    parser.add_argument("--keep", action="store_true", help="keep the jobs' files even if all is well")
    return parser.parse_args()


def _kinds(text: str | None) -> list[str]:
    if text is None:
        return list(KINDS)
    kinds = [kind.strip() for kind in text.split(",") if kind.strip() not in ("", "none")]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        sys.exit(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return kinds


def main() -> int:
    """Run it as the command line says; 0 if nothing is wrong."""
    arguments = _arguments()
    kinds = _kinds(arguments.kinds)
    missing = missing_tool()
    if missing is not None:
        sys.exit(missing)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    minutes = _QUICK_MINUTES if arguments.quick else arguments.minutes
    say_on_stdout(f"seed {seed}, {minutes:g} minutes")
    started = time.monotonic()
    with KafkaCluster(BROKERS, config=CONFIG, proxied=True) as cluster:
        outcome = Driver(cluster, seed, minutes * 60, kinds, say_on_stdout).run()
    say_on_stdout(f"\nseed {seed}, {time.monotonic() - started:.0f} s in all\n{report(outcome)}")
    if outcome.is_clean and not arguments.keep:
        shutil.rmtree(outcome.folder)
    else:
        (outcome.folder / "events").write_text("".join(f"{event}\n" for event in outcome.events))
        say_on_stdout(f"the jobs' files: {outcome.folder}")
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
