"""zstd's levels, as records want them.

The library's levels are made for files. Records repeat keys, names and times, so that matches of four or five bytes
cost about as much as they save, and to look for them is most of the work; and a batch and its tables should stay in the
processor's second-level cache. So the levels 3 to 11, all that look for matches with hash tables alone, look for those
of six bytes here, in tables that are bounded; and where that makes payloads smaller than the library's level does, they
search half as far. What that gains and costs is ``python -m bench.levels``'s question:

    batches of   times as fast    size, JSON of 4 kinds   lines of CSV
     960 KiB     1.05 to 1.6      -4.8 to +1.3%           -0.9 to +2.9%
     256 KiB     1.05 to 3.8      -8.0 to +3.8%           -0.4 to +3.8%
      64 KiB     0.98 to 3.0      -6.3 to +1.3%           +0.8 to +5.0%
      16 KiB     1.01 to 4.3      -4.1 to +6.5%           +4.0 to +7.4%

Lines of CSV, whose fields have three or four letters, are those that grow. With min_match 5 they would grow by less
(3.2 for 4.9% at level 9 in 16 KiB) and all others be larger and slower. Each level is slower than the one below it and
makes smaller payloads. The others are the library's: below 3 it looks for six or seven bytes itself, and above 11 it
parses small batches optimally, which makes them 3 to 5% smaller than anything here, six to ten times as slowly.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from zstandard import (
    STRATEGY_DFAST,
    STRATEGY_GREEDY,
    STRATEGY_LAZY,
    STRATEGY_LAZY2,
    ZstdCompressionParameters,
)

_MIN_MATCH: Final = 6


class Search(NamedTuple):
    """How a level looks for matches. Logs are zstd's: of the number of entries, or of steps; 0 is the library's."""

    strategy: int
    hash_log: int
    chain_log: int = 0
    search_log: int = 0


OF_RECORDS: Final = {
    # In batches of 16 KiB the second table of these two is the first thing to grow too large; with two of 2**15 level 3
    # is as fast, and lines of CSV 1 to 2% larger.
    3: Search(STRATEGY_DFAST, hash_log=16, chain_log=15),
    4: Search(STRATEGY_DFAST, hash_log=17, chain_log=16),
    5: Search(STRATEGY_GREEDY, hash_log=18, search_log=3),
    6: Search(STRATEGY_LAZY, hash_log=18, search_log=3),
    7: Search(STRATEGY_LAZY2, hash_log=18, search_log=2),
    # The library's 8 and 9 make payloads alike to 0.2%.
    8: Search(STRATEGY_LAZY2, hash_log=18, search_log=3),
    9: Search(STRATEGY_LAZY2, hash_log=18, search_log=3),
    10: Search(STRATEGY_LAZY2, hash_log=18, search_log=4),
    11: Search(STRATEGY_LAZY2, hash_log=18, search_log=5),
}


def zstd_parameters(level: int) -> ZstdCompressionParameters:
    """What a context is given for a level; zstd reads level 0 as 3. It fits the tables to batches that are smaller."""
    search = OF_RECORDS.get(level or 3)
    chosen = {} if search is None else {"min_match": _MIN_MATCH, **search._asdict()}
    return ZstdCompressionParameters(compression_level=level, write_checksum=False, write_content_size=True, **chosen)
