"""What is counted of answers that are kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """How often a model version's requests were answered without a run, or were not, and what looking took.

    Attributes:
        hits: Requests that were answered with what another one got.
        hit_ns: What that took; a request that came while the other one ran has waited for it.
        misses: Requests that were run.
        miss_ns: What looking took, and keeping the answer.
    """

    hits: int = 0
    hit_ns: int = 0
    misses: int = 0
    miss_ns: int = 0


@dataclass(slots=True)
class CacheTotals:
    """All models together.

    Attributes:
        bytes: What the answers take that are kept now.
        limit_bytes: What they may take; 0 if none are kept.
        entries: How many there are.
    """

    bytes: int = 0
    limit_bytes: int = 0
    entries: int = 0
