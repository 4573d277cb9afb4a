"""What a runtime is told of a model's configuration when it loads the model: texts by name, since frames carry those.

======================  ===========================================================================================
``roost.inputs``        JSON: rows of name, datatype (empty if not declared) and shape, as the model sees them
``roost.outputs``       likewise
``roost.max_batch_size``  the configuration's
``roost.model_name``    the model
``roost.model_version``  its version
``roost.allow_code``    ``true`` where the model may bring code; else it is left out
``roost.model_config``  the whole configuration in JSON, with all defaults; for models that are code
======================  ===========================================================================================

Every other one is a parameter of the configuration. Models of ONNX Runtime say all that themselves, and get only that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from google.protobuf import json_format
from roost.core.tensors import DATATYPE_OF_CONFIG, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import BACKENDS, DEFAULT_BACKEND
from roost.registry_client.description import ModelDescription
from roost.registry_client.sequences import declared_tensors

INPUTS = "roost.inputs"
OUTPUTS = "roost.outputs"
MAX_BATCH_SIZE = "roost.max_batch_size"
MODEL_NAME = "roost.model_name"
MODEL_VERSION = "roost.model_version"
ALLOW_CODE = "roost.allow_code"
MODEL_CONFIG = "roost.model_config"


def load_options(description: ModelDescription, version: str, *, allow_code: bool) -> dict[str, str]:
    """The options of a load.

    Args:
        description: The model's description.
        version: The version that is loaded.
        allow_code: Whether the model may bring code.
    """
    options = dict(description.options)
    backend, config = BACKENDS[description.backend], description.config
    if backend.name == DEFAULT_BACKEND:
        return options
    batched = description.max_batch_size > 0
    inputs, outputs = declared_tensors(config)
    options |= {
        INPUTS: json.dumps([*_rows(config.input, batched), *_own_rows(config.input, inputs)]),
        OUTPUTS: json.dumps([*_rows(config.output, batched), *_own_rows(config.output, outputs)]),
        MAX_BATCH_SIZE: str(description.max_batch_size),
        MODEL_NAME: config.name,
        MODEL_VERSION: version,
    }
    if allow_code:
        options[ALLOW_CODE] = "true"
    if backend.is_code:
        options[MODEL_CONFIG] = json_format.MessageToJson(
            config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
        )
    return options


def said_under(description: ModelDescription) -> str:
    """What a runtime's word on a model depends on besides the model's files.

    ONNX models speak for themselves; others are asked under the names that their configurations give.
    """
    if description.backend == DEFAULT_BACKEND:
        return description.backend
    options = load_options(description, "", allow_code=False)
    chosen = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    return f"{description.backend}/{chosen}"


def _rows(declared: Iterable[mc.ModelInput | mc.ModelOutput], batched: bool) -> list[tuple[str, str, Sequence[int]]]:
    return [(item.name, _datatype(item), ([-1] if batched else []) + _own_dims(item)) for item in declared]


def _own_rows(
    declared: Sequence[mc.ModelInput] | Sequence[mc.ModelOutput], own: Iterable[TensorSpec]
) -> list[tuple[str, str, Sequence[int]]]:
    """The tensors that only server and model know of; where the configuration lists none, the model says all itself."""
    known = {item.name for item in declared}
    return [(spec.name, spec.datatype, spec.shape) for spec in own if known and spec.name not in known]


def _own_dims(item: mc.ModelInput | mc.ModelOutput) -> list[int]:
    """The dimensions that the model sees: those of ``reshape`` where clients see others."""
    return list(item.reshape.shape if item.HasField("reshape") else item.dims)


def _datatype(item: mc.ModelInput | mc.ModelOutput) -> str:
    return "" if item.data_type == mc.TYPE_INVALID else DATATYPE_OF_CONFIG[mc.DataType.Name(item.data_type)].name
