"""Whether a prepared copy is kept: what trials say decides, and nothing that goes wrong leaves anything behind."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from roost.core.tensors import Signature, Tensor, TensorSpec
from roost.runtimes.prepared.cache import CopyCache
from roost.runtimes.prepared.identity import copy_key
from roost.runtimes.prepared.inputs import inputs_to_try
from roost.runtimes.prepared.making import CopyOrder, NotNow, make_copy
from roost.runtimes.prepared.trial import Peak, measure_model
from roost.runtimes.protocol import LoadedModel, LoadSpec, RunHandle

PLAIN: dict[str, Any] = {"load_s": 0.2, "first_run_s": 0.01, "private_bytes": 100 << 20, "mappings": 1}
PLAIN |= {"peak_bytes": 300 << 20, "signature": {}}
COPY = {**PLAIN, "load_s": 0.05, "private_bytes": 1 << 20, "mappings": 9}


@dataclass
class Trials:
    """Says what trials come to; ``save`` is raised where the copy is to be written."""

    plain: Mapping[str, Any] = field(default_factory=dict)
    copy: Mapping[str, Any] = field(default_factory=dict)
    save: Exception | None = None
    refusal: str = ""
    jobs: list[str] = field(default_factory=list)

    def __call__(self, order: CopyOrder, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        self.jobs.append("copy" if changes.get("prepared") else str(changes["job"]))
        if changes["job"] == "save":
            (Path(changes["target"]) / "model.onnx").write_bytes(b"copy")
            (Path(changes["target"]) / "variables").mkdir()
            (Path(changes["target"]) / "variables" / "data").write_bytes(b"copy" * 10_000)
            if self.refusal:
                return {"refused": self.refusal}
            if self.save is not None:
                raise self.save
            return {"entry": "model.onnx"}
        found = {**COPY, **self.copy} if changes.get("prepared") else {**PLAIN, **self.plain}
        answers = found.get("answers", ["a", "b"])
        return {**found, "answers": answers(len(self.jobs)) if callable(answers) else answers}


@pytest.fixture
def cache(tmp_path: Path) -> CopyCache:
    return CopyCache(tmp_path / "cache", 1 << 20)


def order(tmp_path: Path, size_bytes: int = 1000) -> CopyOrder:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"m" * size_bytes)
    status = file.stat()
    files = [["model.onnx", status.st_ino, status.st_size, status.st_mtime_ns]]
    return CopyOrder(str(file), str(tmp_path), "digest", files, "onnxruntime", memory_bytes=1 << 30)


def made(cache: CopyCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"lock"}


KEY = copy_key("digest", "onnxruntime", {})


def test_a_better_copy_is_kept_and_not_tried_again(cache: CopyCache, tmp_path: Path) -> None:
    trials = Trials()
    manifest = make_copy(cache, order(tmp_path), trials)
    assert not manifest.reason
    assert manifest.plain is not None
    assert manifest.copy is not None
    assert manifest.copy.ready_s == pytest.approx(0.06)
    found = cache.find(KEY)
    assert found is not None
    assert Path(found.path).read_bytes() == b"copy"
    jobs = len(trials.jobs)
    assert make_copy(cache, order(tmp_path), trials) == manifest
    assert len(trials.jobs) == jobs


@pytest.mark.parametrize(
    ("plain", "copy", "reason"),
    [
        ({"load_s": 0.02, "private_bytes": 8 << 20}, {}, "fast"),
        ({"answers": []}, {}, "made-up"),
        ({"answers": lambda turn: [str(turn)]}, {}, "from time to time"),
        ({}, {"answers": ["a", "c"]}, "differ"),
        ({}, {"answers": ["a"]}, "differ"),
        ({}, {"signature": {"inputs": []}}, "differ"),
        ({}, {"load_s": 0.3}, "no better"),
        ({}, {"load_s": 0.1, "first_run_s": 0.2}, "no better"),
        ({}, {"private_bytes": 120 << 20}, "no better"),
    ],
)
def test_a_copy_that_must_not_or_need_not_be_used_is_remembered_as_that(
    cache: CopyCache, tmp_path: Path, plain: Mapping[str, Any], copy: Mapping[str, Any], reason: str
) -> None:
    manifest = make_copy(cache, order(tmp_path), Trials(plain, copy))
    assert reason in manifest.reason
    assert made(cache) == {KEY}
    assert cache.find(KEY) is None
    assert cache.used_bytes() < 20_000, "the copy's files stayed"
    again = Trials()
    assert make_copy(cache, order(tmp_path), again) == manifest
    assert again.jobs == []


def test_a_model_that_has_no_such_form_is_not_tried_again(cache: CopyCache, tmp_path: Path) -> None:
    assert make_copy(cache, order(tmp_path), Trials(refusal="it can't be converted")).reason == "it can't be converted"
    again = Trials()
    assert make_copy(cache, order(tmp_path), again).reason
    assert again.jobs == []
    assert cache.used_bytes() < 20_000, "the copy's files stayed"


@pytest.mark.parametrize("save", [NotNow("it was killed"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_may_pass_is_not_remembered(cache: CopyCache, tmp_path: Path, save: Exception) -> None:
    with pytest.raises(NotNow):
        make_copy(cache, order(tmp_path), Trials(save=save))
    assert made(cache) == set()
    assert not make_copy(cache, order(tmp_path), Trials()).reason


def test_files_that_change_meanwhile_get_no_copy_under_their_old_digest(cache: CopyCache, tmp_path: Path) -> None:
    trials = Trials()
    ordered = order(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"other")
    with pytest.raises(NotNow, match="changed"):
        make_copy(cache, ordered, trials)
    assert made(cache) == set()


def test_a_model_that_is_larger_than_the_cache_is_not_tried(cache: CopyCache, tmp_path: Path) -> None:
    trials = Trials()
    with pytest.raises(NotNow, match="cache"):
        make_copy(cache, order(tmp_path, size_bytes=2 << 20), trials)
    assert trials.jobs == ["measure"]


def test_a_copy_that_is_being_made_is_left_alone(cache: CopyCache, tmp_path: Path) -> None:
    with cache.making(KEY), pytest.raises(NotNow, match="another process"):
        make_copy(cache, order(tmp_path), Trials())


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((), ()), ((1, 16), (1, 16)), ((-1, 4), (3, 4)), ((-1, -1), (1, 576)), ((2, -1, 128), (2, 1, 128))],
)
def test_inputs_have_the_declared_shapes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    specs = [TensorSpec("x", "FP32", shape), TensorSpec("n", "INT64", ())]
    tried = [inputs["x"].shape for inputs in inputs_to_try(specs, [], "")]
    assert wanted in tried
    assert all(len(found) == len(shape) for found in tried)


class Watched(LoadedModel, Peak):
    """A runtime, its only model and the watch on its memory: what is done in which order."""

    name = "watched"
    signature = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))

    def __init__(self) -> None:
        self.done: list[str] = []

    def load(self, spec: LoadSpec) -> LoadedModel:
        self.done.append("load")
        return self

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        raise NotImplementedError

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        self.done.append("run")
        return [Tensor("y", "FP32", (1,), b"1234")]

    def close(self) -> None:
        raise NotImplementedError

    def end(self) -> int:
        self.done.append("peak")
        return 1 << 40


def test_the_peak_that_loads_reserve_is_that_of_the_load_and_not_of_runs(tmp_path: Path) -> None:
    watched = Watched()
    taken = measure_model(watched, LoadSpec("model", str(tmp_path), 1, {}), (), str(tmp_path), watched)
    assert watched.done[:3] == ["load", "peak", "run"]
    assert taken["peak_bytes"] == 1 << 40
