"""The JSON documents of the REST API as JSON Schemas, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.core.tensors import DATATYPES, MAX_RANK

Schema = Mapping[str, Any]


def ref(name: str) -> Schema:
    """Refers to one of ``SCHEMAS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(items: Schema, **more: Any) -> Schema:
    """An array of one kind of items."""
    return {"type": "array", "items": items, **more}


def record(properties: Mapping[str, Schema], required: str = "", **more: Any) -> Schema:
    """An object; ``required`` lists names with blanks between, other keys than the properties are allowed."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, **more}
    if required:
        schema["required"] = required.split()
    return schema


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MODEL_NAME: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$"}
_STRINGS = array_of(STRING)
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_REGION_PARAMETERS: Mapping[str, Schema] = {
    "shared_memory_region": {"type": "string", "description": "The registered region that holds the elements."},
    "shared_memory_offset": {**COUNT, "description": "Where in the region they begin, in bytes."},
    "shared_memory_byte_size": {**COUNT, "description": "How many bytes they take."},
}
_PARAMETER: Schema = {"type": ["boolean", "number", "string"]}
_TENSOR_SPEC = record({"name": STRING, "datatype": _DATATYPE, "shape": ref("ModelShape")}, "name datatype shape")
_STEP = record({"count": COUNT, "ns": {**COUNT, "description": "Nanoseconds, all together."}}, "count ns")
_STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")

_TENSORS: Mapping[str, Schema] = {
    "Shape": array_of({"type": "integer", "minimum": 0}, maxItems=MAX_RANK, description="Dimensions."),
    "ModelShape": array_of({"type": "integer", "minimum": -1}, description="Dimensions; -1 is any size."),
    "TensorData": array_of(
        {"anyOf": [_PARAMETER, ref("TensorData")]},
        description="Elements in row-major order, flat or nested to the shape. BOOL takes booleans, BYTES strings, "
        "integer datatypes integers that fit, and the others numbers (also the literals NaN, Infinity and -Infinity).",
    ),
    "Parameters": {
        "type": "object",
        "additionalProperties": _PARAMETER,
        "description": "Names that begin with triton_, and the name headers, are reserved.",
    },
}

_INFERENCE: Mapping[str, Schema] = {
    "InferRequest": record(
        {
            "id": {**STRING, "description": "Comes back in the answer."},
            "parameters": ref("RequestParameters"),
            "inputs": array_of(ref("InferInput")),
            "outputs": array_of(ref("RequestedOutput"), description="What to answer; absent or empty: everything."),
        },
        "inputs",
    ),
    "RequestParameters": {
        "type": "object",
        "additionalProperties": _PARAMETER,
        "description": "What the server does not know is handed to the model.",
        "properties": {
            "timeout": {**COUNT, "description": "Microseconds after which no answer is wanted."},
            "priority": {**COUNT, "description": "1 is the highest, 0 the model's default."},
            "binary_data_output": {
                **BOOLEAN,
                "description": "Whether outputs come in binary if the request lists none.",
            },
            "sequence_id": {"type": ["integer", "string"], "minimum": 0},
            "sequence_start": BOOLEAN,
            "sequence_end": BOOLEAN,
        },
    },
    "InferInput": record(
        {
            "name": {**STRING, "minLength": 1},
            "datatype": _DATATYPE,
            "shape": ref("Shape"),
            "data": ref("TensorData"),
            "parameters": {
                "type": "object",
                "additionalProperties": _PARAMETER,
                "properties": {
                    "binary_data_size": {
                        **COUNT,
                        "description": "The elements are so many bytes behind the JSON, in the order of the inputs.",
                    },
                    **_REGION_PARAMETERS,
                },
            },
        },
        "name datatype shape",
        description="Has one of data, binary_data_size and shared_memory_region.",
    ),
    "RequestedOutput": record(
        {
            "name": {**STRING, "minLength": 1},
            "parameters": {
                "type": "object",
                "additionalProperties": _PARAMETER,
                "properties": {
                    "binary_data": {**BOOLEAN, "description": "Whether it comes in binary, behind the JSON."},
                    "classification": {**COUNT, "description": "Over 0: only so many of the highest values."},
                    **_REGION_PARAMETERS,
                },
            },
        },
        "name",
    ),
    "InferResponse": record(
        {
            "id": STRING,
            "model_name": STRING,
            "model_version": STRING,
            "parameters": ref("Parameters"),
            "outputs": array_of(ref("InferOutput")),
        },
        "model_name model_version outputs",
    ),
    "InferOutput": record(
        {
            "name": STRING,
            "datatype": _DATATYPE,
            "shape": ref("Shape"),
            "data": {**array_of(_PARAMETER), "description": "Flat, in row-major order."},
            "parameters": ref("Parameters"),
        },
        "name datatype shape",
    ),
    "GenerateRequest": {
        "type": "object",
        "description": "Keys that are inputs of the model become tensors: one element, or a list. The others are "
        "request parameters.",
        "properties": {"id": STRING, "parameters": ref("Parameters")},
    },
    "GenerateResponse": record(
        {"id": STRING, "model_name": STRING, "model_version": STRING},
        "model_name model_version",
        description="Each output under its name: one element, or a list.",
    ),
}

_V1: Mapping[str, Schema] = {
    "PredictRequest": {
        "type": "object",
        "description": "Rows (instances) or columns (inputs). Bytes that are no text are objects with base64 as b64.",
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "description": "One value for each instance, or an object of values by input, stacked to tensors.",
            },
            "inputs": {"description": "A tensor, nested to its shape, or an object of tensors by input."},
            "parameters": ref("RequestParameters"),
        },
    },
    "PredictResponse": {
        "type": "object",
        "description": "What instances are answered with is under predictions, what inputs are is under outputs. "
        "The only output of a model stands for itself, several are objects by name.",
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
        "properties": {"predictions": {}, "outputs": {}},
    },
    "ModelNames": record({"models": _STRINGS}, "models"),
    "GraphNames": record({"graphs": _STRINGS}, "graphs"),
}

_MODELS: Mapping[str, Schema] = {
    "Error": record({"error": STRING}, "error"),
    "GraphError": record(
        {"error": STRING, "cause": {**STRING, "description": "Why no step of the graph could be asked."}}, "error cause"
    ),
    "Live": record({"live": BOOLEAN}, "live"),
    "Ready": record({"ready": BOOLEAN}, "ready"),
    "ModelReady": record({"name": STRING, "ready": BOOLEAN}, "name ready"),
    "ServerMetadata": record({"name": STRING, "version": STRING, "extensions": _STRINGS}, "name version extensions"),
    "ModelMetadata": record(
        {
            "name": STRING,
            "versions": _STRINGS,
            "platform": STRING,
            "inputs": array_of(_TENSOR_SPEC),
            "outputs": array_of(_TENSOR_SPEC),
        },
        "name versions platform inputs outputs",
    ),
    "ModelConfig": record(
        {
            "name": STRING,
            "platform": STRING,
            "backend": STRING,
            "max_batch_size": COUNT,
            "input": array_of({"type": "object"}),
            "output": array_of({"type": "object"}),
            "instance_group": array_of({"type": "object"}),
            "parameters": {"type": "object"},
        },
        "name",
        description="The message inference.ModelConfig of proto/inference/model_config.proto, with its field names.",
    ),
    "Statistics": record({"model_stats": array_of(ref("ModelStatistics"))}, "model_stats"),
    "ModelStatistics": record(
        {
            "name": STRING,
            "version": STRING,
            "last_inference": {**COUNT, "description": "Milliseconds since 1970."},
            "inference_count": {**COUNT, "description": "Rows of batches."},
            "execution_count": {**COUNT, "description": "Runs of the model."},
            "inference_stats": record(dict.fromkeys(_STEPS, ref("StatisticDuration")), " ".join(_STEPS)),
            "response_stats": {"type": "object", "additionalProperties": {"type": "object"}},
            "batch_stats": array_of({"type": "object"}),
            "memory_usage": array_of({"type": "object"}),
        },
        "name version inference_count execution_count inference_stats",
    ),
    "StatisticDuration": _STEP,
}

_CONTROL: Mapping[str, Schema] = {
    "IndexRequest": record({"ready": {**BOOLEAN, "description": "Whether to list only what is ready."}}),
    "Index": array_of(
        record(
            {
                "name": STRING,
                "version": STRING,
                "state": {"type": "string", "enum": ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
                "reason": STRING,
            },
            "name",
        )
    ),
    "LoadRequest": record(
        {
            "parameters": record(
                {"config": {**STRING, "description": "A ModelConfig as JSON text, in place of the one on disk."}},
                additionalProperties={"type": ["boolean", "integer", "string"]},
                description="file:PATH holds a file in base64, in place of those on disk.",
            )
        }
    ),
    "UnloadRequest": record({"parameters": record({"unload_dependents": BOOLEAN})}),
    "TraceSettings": {
        "type": "object",
        "additionalProperties": {"anyOf": [STRING, _STRINGS]},
        "properties": {"trace_level": _STRINGS, "trace_rate": STRING, "trace_count": STRING},
    },
    "TraceUpdate": {
        "type": "object",
        "description": "null puts a setting back to what it was at first.",
        "properties": {"trace_level": {"type": ["array", "null"], "items": STRING}},
    },
    "LogSettings": {"type": "object", "additionalProperties": {"type": ["boolean", "integer", "string"]}},
    "Region": record({"name": STRING, "key": STRING, "offset": COUNT, "byte_size": COUNT}, "name byte_size"),
    "RegisterRequest": record(
        {
            "key": {**STRING, "description": "The name of the POSIX shared-memory object, such as /input0."},
            "offset": COUNT,
            "byte_size": COUNT,
        },
        "key byte_size",
    ),
    "CudaRegion": record({"name": STRING, "device_id": COUNT, "byte_size": COUNT}, "name byte_size"),
    "CudaRegisterRequest": record(
        {
            "raw_handle": record({"b64": {**STRING, "description": "The CUDA IPC handle."}}, "b64"),
            "device_id": COUNT,
            "byte_size": COUNT,
        },
        "raw_handle device_id byte_size",
    ),
}

SCHEMAS: Mapping[str, Schema] = {**_MODELS, **_INFERENCE, **_TENSORS, **_V1, **_CONTROL}
"""What ``ref`` refers to."""
