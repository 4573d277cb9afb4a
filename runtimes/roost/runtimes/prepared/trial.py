"""What a fresh process does with one model: it saves or measures it. See ``roost.runtimes.prepared.fresh``."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from roost.core.errors import Cancelled, ResourceExhausted, RoostError, Unimplemented
from roost.core.figures import Figures
from roost.core.tensors import Tensor, from_array, to_array
from roost.runtimes.memory import (
    allocated_bytes,
    forget_peak,
    mappings_of,
    peak_bytes,
    private_bytes,
    trim_memory,
)
from roost.runtimes.preparer import limit_memory
from roost.runtimes.protocol import (
    ImportsLate,
    LoadedApart,
    LoadedModel,
    LoadSpec,
    PreparingRuntime,
    RunHandle,
    Runtime,
)

WANTED_ANSWERS = 2
ATTEMPTS = 300
BUDGET_S = 20.0
LOOK_EVERY_S = 0.002
QUICK_S = 0.2
PAGE_BYTES = 2 << 20
"""What the kernel counts is not more exact than this where it uses large pages; what malloc counts is, to the byte."""

MORE_INSTANCES = 8
MORE_BYTES = 32 << 20
"""Of a model that loads quickly as many more are measured as fit into this, up to ``MORE_INSTANCES``."""


class Peak:
    """Looks again and again how much private memory the process has more than now: the kernel keeps no peak of it."""

    def __init__(self) -> None:
        self._before_bytes = self._most_bytes = private_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """The most that was seen."""
        self._ended.set()
        self._thread.join()
        return self._most_bytes - self._before_bytes

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._most_bytes = max(self._most_bytes, private_bytes())


def try_model(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Does a job; an answer with an ``error`` says why that can't be done."""
    try:
        return _do(job)
    except (MemoryError, ResourceExhausted):
        return {"error": "needs too much memory to be tried"}
    except RoostError as error:
        return {"error": error.message}
    except Exception as error:
        return {"error": f"an unexpected {type(error).__name__}: {error}"}


def _do(job: Mapping[str, Any]) -> Mapping[str, Any]:
    # All that is imported later would be counted as the model's.
    import numpy.random
    import roost.runtimes.prepared.inputs  # noqa: F401
    from roost.runtimes.adapters import import_runtimes

    runtime: Any = import_runtimes([str(job["backend"])]).get(str(job["backend"]))
    if runtime is None:
        return {"error": f"the runtime '{job['backend']}' is not installed"}
    numpy.random.default_rng(0)
    options = {str(name): str(value) for name, value in job["options"].items()}
    spec = LoadSpec(str(job["path"]), str(job["root"]), int(job["threads"]), options, prepared=bool(job["prepared"]))
    if isinstance(runtime, ImportsLate):
        runtime.import_for(spec)
    trim_memory()  # what the imports have left free would be counted as the model's saving
    peak = Peak() if job["watch"] else None
    limit_memory(int(job["memory_bytes"]))
    if job["job"] == "save":
        return _save(runtime, spec, str(job["target"]))
    if job["job"] == "load":
        return _load(runtime, spec, peak or Peak())
    if job["job"] == "figures":
        return _figures(runtime, spec, job["samples"], str(job["samples_root"]), peak or Peak())
    return measure_model(runtime, spec, job["samples"], str(job["samples_root"]), peak)


def _save(runtime: PreparingRuntime, spec: LoadSpec, target: str) -> Mapping[str, Any]:
    try:
        return {"entry": runtime.prepare(spec, target)}
    except Unimplemented as error:  # which another attempt would not change
        return {"refused": error.message}


def _load(runtime: Runtime, spec: LoadSpec, peak: Peak) -> Mapping[str, Any]:
    """What a load takes, and what the model says of itself; it is not run."""
    before_bytes, started_s = private_bytes(), time.monotonic()
    model = runtime.load(spec)
    load_s = time.monotonic() - started_s
    peak_bytes = peak.end()
    trim_memory()
    own_bytes = model.own_bytes() if isinstance(model, LoadedApart) else 0
    taken_bytes = max(0, private_bytes() - before_bytes) + own_bytes
    model.close()
    return {
        "signature": model.signature.to_json(),
        "load_s": load_s,
        "private_bytes": taken_bytes,
        "peak_bytes": max(taken_bytes, peak_bytes + own_bytes),
    }


def _cpu_s() -> float:
    """Seconds of the processor that this process has used, and those that it has started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure_model(
    runtime: PreparingRuntime,
    spec: LoadSpec,
    samples: Sequence[Mapping[str, Any]],
    samples_root: str,
    peak: Peak | None,
) -> dict[str, Any]:
    """What loading the first model of a process takes, and what it answers.

    Args:
        runtime: Loads it.
        spec: What to load.
        samples: See ``inputs_to_try``.
        samples_root: See there.
        peak: Watches memory, if the most of the load is asked for.
    """
    trim_memory()  # or the model would lie in what the imports have left
    before_bytes, before_mappings = private_bytes(), mappings_of()
    # Elsewhere what counts is how long one waits; here others may have the processor most of the time.
    started_s, started_wall_s = _cpu_s(), time.monotonic()
    model = runtime.load(spec)
    load_s, load_wall_s = _cpu_s() - started_s, time.monotonic() - started_wall_s
    load_peak_bytes = (
        peak.end() if peak is not None else 0
    )  # of the load: runs may take far more, and no load waits for that
    answers, first_run_s = _ask(model, samples, samples_root)
    trim_memory()
    taken_bytes = max(0, private_bytes() - before_bytes)
    return {
        "load_s": load_s,
        "load_wall_s": load_wall_s,
        "first_run_s": first_run_s,
        "private_bytes": taken_bytes,
        "peak_bytes": max(taken_bytes, load_peak_bytes),
        "mappings": max(0, mappings_of() - before_mappings),
        "signature": model.signature.to_json(),
        "answers": answers,
    }


def _figures(
    runtime: PreparingRuntime, spec: LoadSpec, samples: Sequence[Mapping[str, Any]], samples_root: str, peak: Peak
) -> Mapping[str, Any]:
    """What an instance takes where there are others: the first one of a process also pays for what all share."""
    trim_memory()  # or the model would lie in what the imports have left
    before = _taken(spec.root)
    started_s = time.process_time()
    model = runtime.load(spec)
    load_s = time.process_time() - started_s
    load_peak_bytes = peak.end()
    _ask(model, samples, samples_root)
    trim_memory()
    run_bytes = _run_bytes(model, samples, samples_root)
    trim_memory()
    first = each = _less(_taken(spec.root), before)
    if time.process_time() - started_s <= QUICK_S:
        allocated = allocated_bytes()
        wanted = min(MORE_INSTANCES, MORE_BYTES // max(1, first.private_bytes))
        others = list(_more(runtime, spec, samples, samples_root, wanted))
        allocated = allocated_bytes() - allocated
        trim_memory()
        if others:
            each = _share(_less(_less(_taken(spec.root), before), first), len(others))
            if abs(allocated // len(others) - each.private_bytes) <= PAGE_BYTES // len(others):
                each = replace(each, private_bytes=max(0, allocated) // len(others))
    shared_bytes = max(0, first.private_bytes - each.private_bytes)
    most_bytes = max(each.private_bytes, load_peak_bytes - shared_bytes)
    return {**asdict(each), "load_s": load_s, "peak_bytes": most_bytes, "run_bytes": run_bytes}


def _run_bytes(model: LoadedModel, samples: Sequence[Mapping[str, Any]], root: str) -> int:
    """What a run takes for a row while it lasts, of a model that has run before; 0 if that can't be said."""
    from roost.runtimes.prepared.inputs import inputs_to_try

    specs = model.signature.inputs
    is_batch = bool(specs) and all(spec.shape and spec.shape[0] < 0 for spec in specs)
    for inputs in itertools.islice(inputs_to_try(specs, samples, root), ATTEMPTS):
        tensors = [from_array(spec.name, spec.datatype, inputs[spec.name]) for spec in specs]
        before_bytes = peak_bytes() if forget_peak() else 0
        try:
            model.run(tensors, (), RunHandle())
        except (Cancelled, ResourceExhausted):
            break
        except RoostError:  # it does not take these
            continue
        rows = max(1, tensors[0].shape[0]) if is_batch else 1
        return (peak_bytes() - before_bytes) // rows if before_bytes else 0
    return 0


def _more(
    runtime: PreparingRuntime, spec: LoadSpec, samples: Sequence[Mapping[str, Any]], samples_root: str, wanted: int
) -> Iterator[LoadedModel]:
    """More instances that have run, as long as there is memory for them."""
    with contextlib.suppress(MemoryError, ResourceExhausted):
        for _ in range(wanted):
            model = runtime.load(spec)
            _ask(model, samples, samples_root)
            yield model


def _taken(root: str) -> Figures:
    """What this process takes; of the files that it maps those in a folder."""
    folder = os.path.realpath(root).encode() + b"/"
    mapped_bytes = mappings = 0
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            mappings += 1
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(folder):
                start, _, end = fields[0].partition(b"-")
                mapped_bytes += int(end, 16) - int(start, 16)
    return Figures(private_bytes(), mapped_bytes, mappings)


def _less(all_: Figures, others: Figures) -> Figures:
    return Figures(*(max(0, a - b) for a, b in zip(astuple(all_), astuple(others), strict=True)))


def _share(all_: Figures, count: int) -> Figures:
    return Figures(*(-(-value // count) for value in astuple(all_)))


def _ask(model: LoadedModel, samples: Sequence[Mapping[str, Any]], root: str) -> tuple[list[str], float]:
    """Digests of the model's answers to the first inputs that it takes, and how long the first of them took."""
    from roost.runtimes.prepared.inputs import inputs_to_try

    answers: list[str] = []
    first_run_s = 0.0
    end_s = time.process_time() + BUDGET_S
    for inputs in itertools.islice(inputs_to_try(model.signature.inputs, samples, root), ATTEMPTS):
        datatypes = {spec.name: spec.datatype for spec in model.signature.inputs}
        tensors = [from_array(name, datatypes[name], array) for name, array in inputs.items()]
        started_s = time.process_time()
        try:
            outputs = model.run(tensors, (), RunHandle())
        except (Cancelled, ResourceExhausted):
            raise
        except RoostError:
            outputs = ()  # it does not take these
        now_s = time.process_time()
        if outputs:
            first_run_s = first_run_s or now_s - started_s
            answers.append(_digest(outputs))
        if len(answers) == WANTED_ANSWERS or now_s > end_s:
            break
    return answers, first_run_s


def _digest(outputs: Sequence[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in outputs:
        total.update(f"{tensor.name} {tensor.datatype} {tensor.shape}\n".encode())
        array = to_array(tensor)
        total.update(repr(array.tolist()).encode() if tensor.datatype == "BYTES" else array.tobytes())
    return total.hexdigest()
