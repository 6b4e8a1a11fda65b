"""What becomes of producers that nobody closed: flushed when the interpreter ends, and what was lost is said."""

from __future__ import annotations

import atexit
import logging
import time
import warnings
import weakref
from typing import TYPE_CHECKING

from slabpress.errors import FlushTimeoutError, SlabpressError

if TYPE_CHECKING:
    from slabpress.producer import Producer

logger = logging.getLogger("slabpress")
open_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def close_at_exit(producer: Producer) -> None:
    """Flush a producer that nobody closed, for exit_flush_ms, and say what was lost."""
    if producer._closed or producer._coordinator.is_forked:
        return
    started = time.monotonic()
    seconds = producer.config.exit_flush_ms / 1000
    try:
        producer.close(seconds)
    except FlushTimeoutError as error:
        waited = time.monotonic() - started
        warnings.warn(
            f"{error.records} records were lost: the producer was not closed, and they were not acknowledged "
            f"within exit_flush_ms={producer.config.exit_flush_ms} ({waited:.1f} s)",
            RuntimeWarning,
            stacklevel=2,
        )
        logger.warning("%s records were lost at exit", error.records)
    except SlabpressError as error:
        warnings.warn(f"a producer that was not closed: {error}", RuntimeWarning, stacklevel=2)


@atexit.register
def _close_all_at_exit() -> None:
    for producer in list(open_producers):
        close_at_exit(producer)
