"""KServe's histograms by model, under its names: a bounded number of models has series of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roost.router.records import BatchRecord, RequestRecord
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

    def observe_batch(self, batch: BatchRecord) -> None:
        preprocess, predict, postprocess = self.by_step
        preprocess.observe_many(batch.preprocess_s)
        predict.observe_many(batch.predict_s)
        postprocess.observe_same(batch.postprocess_s, batch.count)


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
        self._steps_of(record.name).observe(record)

    def observe_batch(self, batch: BatchRecord) -> None:
        """Counts the requests of a batch."""
        self._steps_of(batch.name).observe_batch(batch)

    def _steps_of(self, name: str) -> _ModelSteps:
        return self._by_model.get(name) or self._steps_of_new(name)

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
