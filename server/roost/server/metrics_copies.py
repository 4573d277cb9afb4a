"""The metrics of copies that come and go, and of how busy workers are, which is what decides about them."""

from __future__ import annotations

from collections.abc import Sequence

from roost.router.copy_counts import CopyCounts
from roost.router.view import WorkerView
from roost.server.exposition import family, labels_of


def copy_families(counts: CopyCounts, workers: Sequence[WorkerView]) -> list[str]:
    """All of them."""
    return [
        family(
            "roost_copies_added_total",
            "counter",
            "Copies that were loaded without a request that waited for a load, by reason.",
            [(labels_of(reason=reason), count) for reason, count in counts.added.items()],
        ),
        family(
            "roost_copies_dropped_total", "counter", "Copies taken out since fewer are enough.", [("", counts.dropped)]
        ),
        family("roost_copies_failed_total", "counter", "Copies that could not be loaded.", [("", counts.failed)]),
        family(
            "roost_copies_lacking",
            "gauge",
            "Copies that are missing of those that models want at least.",
            [("", counts.lacking)],
        ),
        family(
            "roost_worker_busy_seconds_total",
            "counter",
            "Seconds for which a worker had something to run.",
            [(labels_of(worker=worker.id), worker.busy_s) for worker in workers],
        ),
    ]
