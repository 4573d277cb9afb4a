"""The metrics of inference graphs, which there are few of."""

from __future__ import annotations

from collections.abc import Iterable

from roost.router.graphs import Graph
from roost.server.exposition import family, labels_of


def graph_families(graphs: Iterable[Graph]) -> list[str]:
    """All of them; none without graphs."""
    counts = {graph.name: graph.counts for graph in graphs}
    if not counts:
        return []
    return [
        family(
            "roost_graph_requests_total",
            "counter",
            "Finished requests to inference graphs, by graph and code.",
            [
                (labels_of(graph=name, code=code or "OK"), number)
                for name, of in counts.items()
                for code, number in of.requests.items()
            ],
        ),
        family(
            "roost_graph_seconds_total",
            "counter",
            "Seconds that requests to inference graphs took, by graph.",
            [(labels_of(graph=name), of.seconds) for name, of in counts.items()],
        ),
    ]
