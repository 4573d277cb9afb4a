"""The metrics of answers that are kept."""

from __future__ import annotations

from roost.router.cache_counts import CacheTotals
from roost.server.exposition import family


def cache_families(totals: CacheTotals) -> list[str]:
    """All of them; without a cache they stay 0. What is counted by model has Triton's names."""
    return [
        family("roost_response_cache_bytes", "gauge", "Memory that answers take that are kept.", [("", totals.bytes)]),
        family("roost_response_cache_limit_bytes", "gauge", "Limit of the same.", [("", totals.limit_bytes)]),
        family("roost_response_cache_entries", "gauge", "Answers that are kept.", [("", totals.entries)]),
    ]
