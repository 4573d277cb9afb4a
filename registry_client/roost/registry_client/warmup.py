"""What ``model_warmup`` of a configuration asks for: runs of a fresh instance, and rows to try a model with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.core.tensors import DATATYPE_OF_CONFIG
from roost.proto import model_config_pb2 as mc
from roost.registry_client.reshape import reshaped
from roost.registry_client.sequences import declared_tensors

MAX_SAMPLE_BYTES = 1 << 28
"""What one sample may take: it is made in memory that nobody accounts for."""

_UNKNOWN_ITEM_BYTES = 8


def check_warmup(config: mc.ModelConfig) -> None:
    """Checks the samples of a configuration, as far as that can be done without the model.

    Raises:
        InvalidArgument: Naming the sample and the input. The words are Triton's where it has some.
    """
    for sample in config.model_warmup:
        try:
            _check_sample(sample, config)
        except InvalidArgument as error:
            raise InvalidArgument(f"model_warmup '{shorten(sample.name)}': {error.message}") from None


def warmup_runs(config: mc.ModelConfig) -> list[dict[str, Any]]:
    """What a worker is told to run before an instance takes requests: the samples of a checked configuration.

    Each has its ``name``, how many ``times`` it is run, and ``inputs`` by name: ``datatype`` (empty for the
    model's own), the ``shape`` that the model is to get, how many ``rows`` of it are all alike, and one of ``zero``,
    ``random`` and ``file``. Files have one row, and are in the model's folder ``warmup``.
    """
    return [_run(sample, config) for sample in config.model_warmup]


def warmup_samples(config: mc.ModelConfig) -> list[dict[str, dict[str, Any]]]:
    """For each sample one row of its inputs by name: ``shape``, and ``file``, ``zero`` or ``random``.

    Files are names in the model's folder ``warmup``; samples with names that lead elsewhere are left out.
    """
    samples = []
    for warmup in config.model_warmup:
        inputs = {name: _input(given, is_batched=config.max_batch_size > 0) for name, given in warmup.inputs.items()}
        if inputs and all(_stays_inside(str(given.get("file", "x"))) for given in inputs.values()):
            samples.append(inputs)
    return samples


def _check_sample(sample: mc.ModelWarmup, config: mc.ModelConfig) -> None:
    if 0 < config.max_batch_size < sample.batch_size:
        raise InvalidArgument(f"batch_size {sample.batch_size} is over max_batch_size {config.max_batch_size}")
    for name, given in sample.inputs.items():
        if given.WhichOneof("input_data_type") is None:
            raise InvalidArgument(f"warmup setting expects input '{shorten(name)}' to have input_data_type set")
        if any(dim < 0 for dim in given.dims):
            raise InvalidArgument(
                f"warmup setting expects all variable-size dimensions are specified for input '{shorten(name)}'"
            )
        if not _stays_inside(given.input_data_file):
            raise InvalidArgument(f"the file of input '{shorten(name)}' is not in the model's folder 'warmup'")
        if math.prod(_shape(name, given, sample, config)) * _item_bytes(given) > MAX_SAMPLE_BYTES:
            raise InvalidArgument(f"input '{shorten(name)}' takes more than {MAX_SAMPLE_BYTES >> 20} MiB")


def _run(sample: mc.ModelWarmup, config: mc.ModelConfig) -> dict[str, Any]:
    is_batched = config.max_batch_size > 0
    rows = (sample.batch_size or 1) if is_batched else 1
    times = max(1, sample.count) * (1 if is_batched else sample.batch_size or 1)  # else it has rows as single requests
    inputs = {
        name: {
            **_input(given),
            "shape": _shape(name, given, sample, config),
            "rows": rows,
            "datatype": _datatype(given),
        }
        for name, given in sorted(sample.inputs.items())
    }
    for spec in declared_tensors(config)[0]:  # what the server gives to models of sequences
        shape = [max(1, dim) for dim in spec.shape]
        shape[:1] = [rows] if is_batched else shape[:1]
        own = {"zero": True, "shape": shape, "rows": rows, "datatype": spec.datatype, "may_miss": True}
        inputs.setdefault(spec.name, own)
    return {"name": sample.name, "times": times, "inputs": inputs}


def _shape(name: str, given: mc.ModelWarmup.Input, sample: mc.ModelWarmup, config: mc.ModelConfig) -> list[int]:
    """The shape that the model is to get: with the batch dimension, and without what clients see instead.

    Raises:
        InvalidArgument: If that does not fit.
    """
    dims = tuple(given.dims)
    for item in _reshaped_inputs(config):
        if item.name == name:
            own = reshaped(dims, item.dims, item.reshape.shape)
            if own is None:
                raise InvalidArgument(f"dims {list(dims)} do not fit input '{shorten(name)}'")
            dims = own
    return [sample.batch_size or 1, *dims] if config.max_batch_size > 0 else list(dims)


def _reshaped_inputs(config: mc.ModelConfig) -> Iterator[mc.ModelInput]:
    return (item for item in config.input if item.HasField("reshape"))


def _datatype(given: mc.ModelWarmup.Input) -> str:
    return "" if given.data_type == mc.TYPE_INVALID else DATATYPE_OF_CONFIG[mc.DataType.Name(given.data_type)].name


def _item_bytes(given: mc.ModelWarmup.Input) -> int:
    if given.data_type == mc.TYPE_INVALID:
        return _UNKNOWN_ITEM_BYTES
    return DATATYPE_OF_CONFIG[mc.DataType.Name(given.data_type)].itemsize or _UNKNOWN_ITEM_BYTES


def _input(given: mc.ModelWarmup.Input, *, is_batched: bool = False) -> dict[str, Any]:
    shape = [1, *given.dims] if is_batched else list(given.dims)
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
