"""The samples that ``model_warmup`` of a configuration gives, as rows to try a model with."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from roost.proto import model_config_pb2 as mc


def warmup_samples(config: mc.ModelConfig) -> list[dict[str, dict[str, Any]]]:
    """For each sample its inputs by name: ``shape``, and ``file``, ``zero`` or ``random``.

    Files are names in the model's folder ``warmup``; samples with names that lead elsewhere are left out.
    """
    samples = []
    for warmup in config.model_warmup:
        inputs = {name: _input(given) for name, given in warmup.inputs.items()}
        if inputs and all(_stays_inside(str(given.get("file", "x"))) for given in inputs.values()):
            samples.append(inputs)
    return samples


def _input(given: mc.ModelWarmup.Input) -> dict[str, Any]:
    shape = list(given.dims)
    match given.WhichOneof("input_data_type"):
        case "input_data_file":
            return {"shape": shape, "file": given.input_data_file}
        case "random_data":
            return {"shape": shape, "random": True}
        case _:
            return {"shape": shape, "zero": True}


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
