"""Packages of AOTInductor: shared libraries, compiled for one kind of processor. They are code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from roost.runtimes.pytorch.naming import Argument
from roost.runtimes.pytorch.program import Program


def load_compiled(path: str) -> Program:
    """Loads a compiled program, which does not say what its tensors are.

    Raises:
        RuntimeError: If it is broken, or was compiled for another machine.
    """
    model = torch._inductor.aoti_load_package(path, run_single_threaded=False)
    count = _leaves(json.loads(model.loader.get_call_spec()[0])[1])
    # Whether it writes to its inputs is not known either.
    arguments = [Argument(f"INPUT__{i}", is_changed=True) for i in range(count)]

    def call(values: Mapping[int, Any]) -> Any:
        return model(*(values[position] for position in range(count)))

    return Program(call, arguments, device=torch.device(model.loader.get_metadata().get("AOTI_DEVICE_KEY", "cpu")))


def _leaves(structure: Mapping[str, Any]) -> int:
    children = structure["children_spec"]
    if not children:
        return int(structure["type"] is None)
    return sum(_leaves(child) for child in children)
