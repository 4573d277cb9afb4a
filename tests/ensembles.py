"""Configurations of ensembles for tests, in text form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Specs = Mapping[str, tuple[str, Sequence[int]]]
"""Datatype and dims by name."""


def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = -1) -> str:
    """One step; inputs and outputs of the model with their ensemble tensors."""
    maps = [f'input_map {{ key: "{own}" value: "{tensor}" }}' for own, tensor in inputs.items()]
    maps += [f'output_map {{ key: "{own}" value: "{tensor}" }}' for own, tensor in outputs.items()]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}'


def tensors(inputs: Specs, outputs: Specs) -> str:
    """Inputs and outputs of a model."""
    rows = [
        (kind, name, *spec) for kind, specs in (("input", inputs), ("output", outputs)) for name, spec in specs.items()
    ]
    return "\n".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: {list(dims)} }}'
        for kind, name, datatype, dims in rows
    )


def ensemble(inputs: Specs, outputs: Specs, *steps: str, more: str = "") -> str:
    """A whole configuration."""
    return "\n".join(
        ('platform: "ensemble"', tensors(inputs, outputs), f"ensemble_scheduling {{ {' '.join(steps)} }}", more)
    )
