"""KServe's histograms by model, under its names: a bounded number of models has series of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roost.router.records import RequestRecord
from roost.server.exposition import Histogram, head, join, labels_of

MAX_MODELS = 100
"""So many models have series of their own, the first that are used; the others share those of the empty name."""

_STEPS = {
    "preprocess": "from the first byte of a request until it waits for its model",
    "predict": "that successful requests waited for their model and were run",
    "postprocess": "from the end of a run until the answer is handed to the transport",
}
_EXPLAIN = "request_explain_seconds"


class _ModelSteps:
    """The histograms of one model, in the order of ``_STEPS``."""

    __slots__ = ("by_step",)

    def __init__(self) -> None:
        self.by_step = (Histogram(), Histogram(), Histogram())

    def observe(self, record: RequestRecord) -> None:
        before_s, after_s = record.preprocess_s, record.postprocess_s
        preprocess, predict, postprocess = self.by_step
        preprocess.observe(before_s)
        predict.observe(record.total_s - before_s - after_s)
        postprocess.observe(after_s)


class KServeHistograms:
    """See the module.

    Args:
        models: Models that have series of their own in any case.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self._by_model = {name: _ModelSteps() for name in models}
        self._room = MAX_MODELS
        self._others: _ModelSteps | None = None

    def observe(self, record: RequestRecord) -> None:
        """Counts a request that succeeded."""
        steps = self._by_model.get(record.name)
        if steps is None:
            steps = self._steps_of_new(record.name)
        steps.observe(record)

    def _steps_of_new(self, name: str) -> _ModelSteps:
        if self._room:
            self._room -= 1
            steps = self._by_model[name] = _ModelSteps()
            return steps
        if self._others is None:
            self._others = _ModelSteps()
        return self._others

    def slices(self) -> Iterator[str]:
        """The text, in parts between which the event loop may take its turn."""
        models = list(self._by_model.items())
        if self._others is not None:
            models.append(("", self._others))
        for place, (step, what) in enumerate(_STEPS.items()):
            name = f"request_{step}_seconds"
            yield head(name, "histogram", f"Seconds {what}.")
            for model, steps in models:
                yield join(list(steps.by_step[place].lines(name, labels_of(model_name=model))))
        # Nothing is explained here, so there are no samples; a dashboard that asks for them finds the name.
        yield head(_EXPLAIN, "histogram", "Seconds that explanations took.")
