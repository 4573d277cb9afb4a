"""Which models may be batched: what is asked of them, what is found out about them, and how that is said.

A model whose configuration sets ``max_batch_size`` says itself that its rows may be run together. Of another one with
an open first dimension that has to be proven, unless the server or the model's owner says that this is enough.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import metadata

from roost.core.tensors import Signature
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.warmup import warmup_samples

PROOF_VERSION = 1
"""Grows when a proof asks for something else, so that older ones are made again."""

DEFAULT_ROWS = 32
"""The largest batch of a model whose configuration names none."""

MAX_FAILURES = 3

PENDING = "pending"


class BatchingMode(StrEnum):
    """Which models are batched, besides those whose own parameter ``roost.batching`` says so."""

    PROVEN = "proven"
    """Those whose configuration says so, and those of which it is proven that they may be."""
    DECLARED = "declared"
    """Those whose configuration says so."""
    SYMBOLIC = "symbolic"
    """Those as well whose inputs and outputs all have an open first dimension, as with Triton."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many rows may be run together, 0 for none, and what the model's configuration shows of that."""

    rows: int
    text: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of trying to prove that rows of an artifact may be run together.

    Attributes:
        max_rows: How many may be; 0 if it is not proven.
        reason: Why it is not.
        failures: How often the attempt itself failed, so that nothing is known; 0 once something is.
    """

    max_rows: int
    reason: str = ""
    failures: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing would be found out by another attempt."""
        return not 0 < self.failures < MAX_FAILURES

    @property
    def decision(self) -> Decision:
        """What follows."""
        if self.max_rows > 1:
            return Decision(self.max_rows, f"proven: up to {self.max_rows} rows")
        return Decision(0, f"not proven: {self.reason}")


def decide(description: ModelDescription, signature: Signature, mode: BatchingMode) -> Decision | None:
    """What follows from a model's configuration and signature alone; None if it has to be proven."""
    if description.decoupled or description.policy.batching is False:
        return Decision(0, "off")
    if description.max_batch_size > 0:
        return Decision(description.max_batch_size, "config")
    if description.sequences is not None:
        return Decision(0, "not tried: its requests are of sequences")
    obstacle = _obstacle(signature)
    if obstacle:
        return Decision(0, f"not proven: {obstacle}")
    if description.policy.batching:
        return Decision(DEFAULT_ROWS, "on")
    if mode is BatchingMode.SYMBOLIC:
        return Decision(DEFAULT_ROWS, f"symbolic: up to {DEFAULT_ROWS} rows")
    if mode is BatchingMode.DECLARED:
        return Decision(0, "not tried: --batching declared")
    if description.backend != "onnxruntime":
        return Decision(0, f"not proven: models of backend '{description.backend}' can't be tried")
    return None


def _obstacle(signature: Signature) -> str:
    """Why requests can't even be put together, whatever the model does."""
    tensors = [("input", spec) for spec in signature.inputs] + [("output", spec) for spec in signature.outputs]
    for what, spec in tensors:
        if not spec.shape:
            return f"{what} '{spec.name}' has no dimension for rows"
        if spec.shape[0] >= 0:
            return f"{what} '{spec.name}' has a fixed first dimension"
        if spec.inner is not None:
            return f"{what} '{spec.name}' is reshaped"
    return "" if signature.inputs and signature.outputs else "it has no inputs or no outputs"


def conditions_of(description: ModelDescription) -> str:
    """What a proof depends on besides the model's files."""
    samples = warmup_samples(description.config)
    chosen = json.dumps([dict(description.options), samples], sort_keys=True)
    key = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    return f"{PROOF_VERSION}/{description.backend}/{runtime_version()}/{key}"


@cache
def runtime_version() -> str:
    """The version of ONNX Runtime, whichever of its distributions is installed; nothing is imported for that."""
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
