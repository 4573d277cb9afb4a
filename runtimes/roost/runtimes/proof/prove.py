"""The proof that rows of an ONNX model may be run together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roost.core.errors import Code, RoostError
from roost.runtimes.onnx import OnnxRuntime
from roost.runtimes.proof.dims import NotProven
from roost.runtimes.proof.graph import check_graph
from roost.runtimes.proof.rows import Budget, RowCheck
from roost.runtimes.proof.samples import warm_up
from roost.runtimes.protocol import LoadSpec


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of an attempt.

    Attributes:
        max_rows: How many rows may be run together; 0 if it is not proven that any may.
        reason: Why it is not proven.
    """

    max_rows: int
    reason: str = ""


def prove(
    spec: LoadSpec,
    *,
    max_rows: int,
    budget_s: float,
    samples: Sequence[Mapping[str, Any]] = (),
    samples_root: str = "",
    static: bool = True,
) -> Verdict:
    """Finds out whether rows of a model may be run together; whatever stands against it is the verdict's reason.

    Args:
        spec: The model, to be loaded as workers load it.
        max_rows: The largest batch that is wanted.
        budget_s: Seconds of the processor that it may take, not counting the load.
        samples: What ``model_warmup`` gives; see ``roost.runtimes.proof.samples``.
        samples_root: The folder in whose folder ``warmup`` their files are.
        static: Whether the graph is looked at; tests see with False what running alone finds.

    Raises:
        RoostError: If the model can't be loaded.
    """
    try:
        if static:
            check_graph(spec.path)
        model = OnnxRuntime().load(spec)
        try:
            check = RowCheck(model, Budget(budget_s))
            rows = check.check(warm_up(model.signature.inputs, samples, samples_root), max_rows)
        finally:
            model.close()
    except NotProven as reason:
        return Verdict(0, str(reason))
    except MemoryError:
        return Verdict(0, "needs too much memory to be tried")
    except RoostError as error:
        if error.code is Code.RESOURCE_EXHAUSTED:
            return Verdict(0, "needs too much memory to be tried")
        raise
    return Verdict(rows)
