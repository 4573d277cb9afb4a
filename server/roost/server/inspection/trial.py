"""A trial load, in processes of its own: what the model then says of itself, what it takes, whether it batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from roost.core.figures import Figures
from roost.core.tensors import Signature
from roost.router.process import CHILD_ENVIRONMENT
from roost.router.proof import DEFAULT_ROWS, Proof
from roost.router.proofs import BUDGET_S
from roost.runtimes.measuring import measure
from roost.runtimes.prepared.making import CopyOrder, NotNow, in_fresh_process

_MEASURED = "onnxruntime"
"""The runtime whose models are measured beside others of their kind, and tried for batches."""

_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a load.

    Attributes:
        signature: What the model says of itself.
        load_s: How long it took.
        figures: What an instance takes.
        run_bytes: What a run takes for a row, if that was measured.
    """

    signature: Signature
    load_s: float
    figures: Figures
    run_bytes: int = 0


def try_load(order: CopyOrder, timeout_s: float) -> Trial:
    """Loads a model.

    Raises:
        NotNow: If it can't be loaded; the text says why.
    """
    said = in_fresh_process(order, {"job": "load", "watch": True}, timeout_s=timeout_s)
    figures, run_bytes = Figures(int(said["private_bytes"])), 0
    if order.backend == _MEASURED:
        taken: Mapping[str, Any] = measure({"order": asdict(order)}).get("taken", {})
        if taken:
            figures = Figures(int(taken["private_bytes"]), int(taken["mapped_bytes"]), int(taken["mappings"]))
            run_bytes = int(taken.get("run_bytes", 0))
    return Trial(Signature.from_json(said["signature"]), float(said["load_s"]), figures, run_bytes)


def try_batches(order: CopyOrder) -> Proof:
    """Finds out whether rows of a model may be run together, as a server does it in the background."""
    job = {
        "id": 1,
        "job": "prove_batching",
        "path": order.path,
        "root": order.root,
        "options": dict(order.options),
        "threads": order.threads,
        "max_rows": DEFAULT_ROWS,
        "budget_s": BUDGET_S,
        "memory_bytes": order.memory_bytes,
        "samples": list(order.samples),
        "samples_root": order.samples_root,
    }
    command = [sys.executable, "-P", "-m", "roost.runtimes.preparer", "--log-level", "error"]
    environment = {**os.environ, **CHILD_ENVIRONMENT}
    data = json.dumps(job).encode() + b"\n"
    try:
        ended = subprocess.run(
            command, input=data, stdout=subprocess.PIPE, env=environment, timeout=BUDGET_S + _GRACE_S, check=False
        )
        answer = json.loads(ended.stdout)
        if "error" in answer:
            return Proof(0, str(answer["error"]), 1)
        return Proof(int(answer["result"]["max_rows"]), str(answer["result"]["reason"]))
    except subprocess.TimeoutExpired:
        return Proof(0, "it took too long to try", 1)
    except (ValueError, LookupError, TypeError):
        return Proof(0, f"the process that tried it ended with exit code {ended.returncode}", 1)


__all__ = ["NotNow", "Trial", "try_batches", "try_load"]
