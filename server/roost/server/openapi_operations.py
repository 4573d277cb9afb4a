"""What each call of the REST API does, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.server.openapi_schemas import STRING, Schema, array_of, ref

JSON = "application/json"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream"

TAGS: Mapping[str, str] = {
    "Inference": "Asking models, in the Open Inference Protocol (KServe v2).",
    "KServe v1": "Asking models as TensorFlow Serving and KServe's v1 protocol do.",
    "Graphs": "Asking several models with one request, as KServe's InferenceGraph (with --graphs).",
    "Health": "Whether server and models take requests.",
    "Metadata": "What server and models say of themselves.",
    "Statistics": "How often models were asked and how long that took.",
    "Repository": "Which models there are, and loading and unloading them (with --model-control explicit).",
    "Shared memory": "Regions that hold tensors outside of requests (with --allow-client-shm).",
    "Settings": "Settings of tracing and of the log.",
    "About": "This document.",
}


@dataclass(frozen=True)
class Operation:
    """What one call does.

    Attributes:
        id: Its name for generated clients.
        tag: The group it belongs to.
        summary: What it does, in a few words.
        answers: Schemas of what it answers with on success, by content type; empty: nothing.
        errors: Statuses that it may answer with besides, with blanks between.
        body: Schemas of what it takes, by content type.
        needs_body: Whether there has to be a body.
        description: What else there is to say.
        exceptions: Schemas of errors that say more than others.
    """

    id: str
    tag: str
    summary: str
    answers: Mapping[str, Schema]
    errors: str = ""
    body: Mapping[str, Schema] = field(default_factory=dict)
    needs_body: bool = True
    description: str = ""
    exceptions: Mapping[int, Schema] = field(default_factory=dict)


def _json(schema: Schema) -> Mapping[str, Schema]:
    return {JSON: schema}


# What reading a body may end in.
_READ = "400 413 429 501 504"
_MODEL = "400 404 429 503 504"
_INFER = "400 404 413 429 500 501 503 504"
_BYTES: Schema = {"type": "string", "format": "binary"}

_INFERENCE: Mapping[str, Operation] = {
    "POST /v2/models/{model}/infer": Operation(
        "infer",
        "Inference",
        "Run a model",
        {JSON: ref("InferResponse"), BINARY: _BYTES},
        _INFER,
        {JSON: ref("InferRequest"), BINARY: _BYTES},
        description="With binary tensors the body is JSON, as long as Inference-Header-Content-Length says, and behind "
        "it the elements of the inputs that have a binary_data_size; answers likewise. A length of 0 is a raw request: "
        "the body is the only input of the model. Bodies may be compressed (gzip, deflate). "
        "The Content-Type of requests is not looked at.",
    ),
    "POST /v2/models/{model}/generate": Operation(
        "generate",
        "Inference",
        "Run a model on flat JSON",
        _json(ref("GenerateResponse")),
        _INFER,
        _json(ref("GenerateRequest")),
    ),
    "POST /v2/models/{model}/generate_stream": Operation(
        "generateStream",
        "Inference",
        "Run a model on flat JSON and stream its answers",
        {EVENTS: {"description": "Server-sent events."}},
        _INFER,
        _json(ref("GenerateRequest")),
        description="Each event is a GenerateResponse, or an Error if something fails after the first one.",
    ),
    "GET /v1/models": Operation("v1Models", "KServe v1", "Names of the models", _json(ref("ModelNames"))),
    "GET /v1/models/{model}": Operation(
        "v1ModelReady", "KServe v1", "Whether a model takes requests", _json(ref("ModelReady")), "404 503"
    ),
    "POST /v1/models/{model}:predict": Operation(
        "v1Predict", "KServe v1", "Run a model", _json(ref("PredictResponse")), _INFER, _json(ref("PredictRequest"))
    ),
    "POST /v1/models/{model}:explain": Operation(
        "v1Explain", "KServe v1", "Explain a prediction; not implemented", {}, "501"
    ),
}

_GRAPHS: Mapping[str, Operation] = {
    "GET /graphs": Operation("graphs", "Graphs", "Names of the graphs", _json(ref("GraphNames"))),
    "GET /graphs/{graph}/ready": Operation(
        "graphReady", "Graphs", "Whether the models of a graph take requests", _json(ref("ModelReady")), "404 503"
    ),
    "POST /graphs/{graph}": Operation(
        "graphInfer",
        "Graphs",
        "Run a graph",
        _json({"type": "object"}),
        _INFER,
        _json({"anyOf": [ref("PredictRequest"), ref("InferRequest"), {}]}),
        description="The body is what the models take: that of a v1 predict or a v2 infer request, with whatever else "
        "conditions look at. The answer is that of the last step, or of an Ensemble an object of answers by step.",
        exceptions={status: {"anyOf": [ref("Error"), ref("GraphError")]} for status in (404, 500)},
    ),
}

_ABOUT: Mapping[str, Operation] = {
    "GET /": Operation("alive", "Health", "Whether the process runs, as KServe asks", _json({"type": "object"}), "503"),
    "GET /v2/health/live": Operation(
        "live", "Health", "Whether the process runs", _json(ref("Live")), "503", exceptions={503: ref("Live")}
    ),
    "GET /v2/health/ready": Operation(
        "ready", "Health", "Whether requests are welcome", _json(ref("Ready")), "503", exceptions={503: ref("Ready")}
    ),
    "GET /v2/models/{model}/ready": Operation(
        "modelReady",
        "Health",
        "Whether a model takes requests",
        _json(ref("ModelReady")),
        "400",
        description="A model that is not loaded yet is ready, since the first request loads it. "
        "One that is unknown is not ready, like one that failed.",
    ),
    "GET /v2": Operation("serverMetadata", "Metadata", "Name, version, extensions", _json(ref("ServerMetadata"))),
    "GET /v2/models": Operation("models", "Metadata", "Names of the models", _json(ref("ModelNames"))),
    "GET /v2/models/{model}": Operation(
        "modelMetadata", "Metadata", "Versions, inputs and outputs of a model", _json(ref("ModelMetadata")), _MODEL
    ),
    "GET /v2/models/{model}/config": Operation(
        "modelConfig", "Metadata", "The configuration in effect", _json(ref("ModelConfig")), _MODEL
    ),
    "GET /v2/models/{model}/stats": Operation(
        "modelStatistics", "Statistics", "Statistics of a model", _json(ref("Statistics")), "400 404"
    ),
    "GET /v2/models/stats": Operation(
        "statistics", "Statistics", "Statistics of all models that were used", _json(ref("Statistics")), "400"
    ),
    "GET /openapi.json": Operation("openapi", "About", "This document", _json({"type": "object"})),
}

_REPOSITORY: Mapping[str, Operation] = {
    "POST /v2/repository/index": Operation(
        "index",
        "Repository",
        "All models with their state",
        _json(ref("Index")),
        _READ,
        _json(ref("IndexRequest")),
        False,
    ),
    "POST /v2/repository/models/{model}/load": Operation(
        "load",
        "Repository",
        "Make a model available",
        {},
        f"{_READ} 404 503",
        _json(ref("LoadRequest")),
        False,
        description="Answers when one instance was loaded, so that a broken model fails the call.",
    ),
    "POST /v2/repository/models/{model}/unload": Operation(
        "unload",
        "Repository",
        "Make a model unavailable",
        {},
        f"{_READ} 404 503",
        _json(ref("UnloadRequest")),
        False,
        description="Answers at once; requests that are under way are still answered.",
    ),
}


def _settings(path: str, name: str, what: str, settings: Schema, update: Schema) -> dict[str, Operation]:
    return {
        f"GET {path}": Operation(name, "Settings", f"Settings of {what}", _json(settings), "400 404"),
        f"POST {path}": Operation(
            f"{name}Update",
            "Settings",
            f"Change settings of {what}; all of them are answered",
            _json(settings),
            f"{_READ} 404",
            _json(update),
            False,
        ),
    }


def _memory(kind: str, name: str, what: str, region: Schema, register: Schema) -> dict[str, Operation]:
    path, tag = f"/v2/{kind}", "Shared memory"
    return {
        f"GET {path}/status": Operation(f"{name}Status", tag, f"All regions of {what}", _json(array_of(region)), "400"),
        f"GET {path}/region/{{region}}/status": Operation(
            f"{name}RegionStatus", tag, f"One region of {what}", _json(array_of(region)), "400 404"
        ),
        f"POST {path}/region/{{region}}/register": Operation(
            f"{name}Register", tag, f"Make a region of {what} known", {}, f"{_READ} 404 409", _json(register)
        ),
        f"POST {path}/region/{{region}}/unregister": Operation(
            f"{name}RegionUnregister", tag, f"Forget one region of {what}", {}, _READ
        ),
        f"POST {path}/unregister": Operation(f"{name}Unregister", tag, f"Forget all regions of {what}", {}, _READ),
    }


_SETTINGS: Mapping[str, Operation] = {
    **_settings("/v2/trace/setting", "traceSettings", "tracing", ref("TraceSettings"), ref("TraceUpdate")),
    **_settings(
        "/v2/models/{model}/trace/setting",
        "modelTraceSettings",
        "tracing for one model",
        ref("TraceSettings"),
        ref("TraceUpdate"),
    ),
    **_settings("/v2/logging", "logSettings", "the log", ref("LogSettings"), ref("LogSettings")),
}
_MEMORY: Mapping[str, Operation] = {
    **_memory("systemsharedmemory", "systemSharedMemory", "system memory", ref("Region"), ref("RegisterRequest")),
    **_memory("cudasharedmemory", "cudaSharedMemory", "CUDA memory", ref("CudaRegion"), ref("CudaRegisterRequest")),
}

OPERATIONS: Mapping[str, Operation] = {**_INFERENCE, **_GRAPHS, **_ABOUT, **_REPOSITORY, **_SETTINGS, **_MEMORY}
"""By method and path; a path with a version or repository in it means the same as without."""

ERRORS: Mapping[int, str] = {
    400: "Something is wrong with the request, or the state of model or server does not allow it.",
    403: "The call is restricted (--http-restricted-api) and its header is missing.",
    404: "There is no such model, version, graph or region.",
    409: "It exists already.",
    413: "The body is over the limit (--max-body).",
    429: "The server has as much to do as it takes; try again later.",
    500: "The model failed, or there is a defect whose id is in the log.",
    501: "The server does not do this.",
    503: "Not now: the model failed to load, a worker was lost, or the server is stopping.",
    504: "The deadline has passed.",
}

PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "model": {"description": "The name of a model.", "schema": STRING},
    "graph": {"description": "The name of an inference graph.", "schema": STRING},
    "version": {
        "description": "The number of a version; without it the model's version policy or a route chooses.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "region": {"description": "The name of a region.", "schema": {**STRING, "minLength": 1}},
    "repository": {"description": "Repositories have no names; every one is refused with 501.", "schema": STRING},
}
