"""The metrics of prepared copies."""

from __future__ import annotations

from roost.router.prepared_counts import PreparedCounts
from roost.server.exposition import family


def prepared_families(counts: PreparedCounts) -> list[str]:
    """All of them; without a cache they stay 0."""
    return [
        family("roost_prepared_bytes", "gauge", "Disk space that prepared copies take.", [("", counts.bytes)]),
        family("roost_prepared_limit_bytes", "gauge", "Limit of roost_prepared_bytes.", [("", counts.limit_bytes)]),
        family("roost_prepared_loads_total", "counter", "Loads from prepared copies.", [("", counts.loads)]),
        family("roost_prepared_made_total", "counter", "Prepared copies that were made.", [("", counts.made)]),
        family(
            "roost_prepared_refused_total",
            "counter",
            "Models that get no prepared copy, since it would be of no use or could not be verified.",
            [("", counts.refused)],
        ),
        family(
            "roost_prepared_failures_total",
            "counter",
            "Times that a prepared copy could not be made or loaded.",
            [("", counts.failures)],
        ),
        family(
            "roost_prepared_damaged_total",
            "counter",
            "Prepared copies whose checksums were wrong.",
            [("", counts.damaged)],
        ),
    ]
