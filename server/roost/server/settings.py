"""The settings of ``roost serve``: one field for each flag, ``ROOST_`` variable and key of the YAML file.

Flags, help texts and ``docs/configuration.md`` are made from the fields, so a setting is described here and
nowhere else. Values may be written as people write them (``64MiB``, ``30s``); fields hold bytes and seconds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from roost.server.values import (
    MAX_HISTOGRAM_MODELS,
    AutoSize,
    AutoSizeOrNone,
    CodeRepositories,
    Compression,
    Count,
    CountOrNone,
    Duration,
    Grace,
    GrpcTransport,
    HistogramModels,
    ModelsOrAll,
    OptionalDuration,
    OptionalPath,
    OptionalPattern,
    OptionalPort,
    Paths,
    Port,
    RestrictionSpecs,
    Size,
    Switch,
    Text,
    WorkerCountSpecs,
    WorkerLabelSpecs,
    Workers,
    choice,
)

MODELS = "Models"
LISTENERS = "Listeners"
CLIENTS = "What clients may do and see"
GRPC = "gRPC connections"
MEMORY = "Workers and memory"
LIMITS = "Limits and timeouts"
LOGS = "Logs and metrics"


def _setting(
    default: Any,
    group: str,
    metavar: str,
    description: str,
    *,
    shown_default: str | None = None,
    separator: str = ",",
    hidden: bool = False,
    alone: str | None = None,
) -> Any:
    """A field with what flags and documentation need.

    Args:
        default: Its value if nobody sets it.
        group: The heading it stands under.
        metavar: What its value is called in help texts; empty for switches.
        description: Whole sentences; help and documentation print them.
        shown_default: The default in words, where it depends on the machine.
        separator: What separates the elements of a list in the environment.
        hidden: Leave it out of help and documentation.
        alone: What a flag without a value stands for, where that is allowed.
    """
    extra: dict[str, Any] = {
        "group": group,
        "metavar": metavar,
        "shown_default": shown_default,
        "separator": separator,
        "hidden": hidden,
        "alone": alone,
    }
    return Field(default, description=description, json_schema_extra=extra)


class Settings(BaseSettings):
    """Everything that can be set; ``None`` stands for what is worked out from the machine."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=False, protected_namespaces=())

    model_repository: Paths = _setting(
        (),
        MODELS,
        "PATH",
        "Folder that holds the models, one folder each, in Triton's layout. Give it several times for several "
        "repositories. At least one is needed.",
        shown_default="none, required",
        separator=":",
    )
    model_control: Annotated[str, BeforeValidator(choice("none", "explicit", "poll"))] = _setting(
        "none",
        MODELS,
        "none|explicit|poll",
        "Who says which models are available. With `none` all models in the repositories are, and a model is "
        "loaded by the first request for it. With `explicit` only those are that `--load-model` or a load call of "
        "the repository API names. With `poll` it is as with `none`, and the repositories are watched for models "
        "that come, change or go.",
    )
    repository_poll_interval: OptionalDuration = _setting(
        None,
        MODELS,
        "DURATION",
        "How often the repositories are looked at with `--model-control poll`.",
        shown_default="15s with `--model-control poll`",
    )
    load_model: ModelsOrAll = _setting(
        (),
        MODELS,
        "NAME",
        "Model to make available and load on start with `--model-control explicit`. Give it several times for "
        "several models; `*` means all.",
    )
    batching: Annotated[str, BeforeValidator(choice("proven", "declared", "symbolic"))] = _setting(
        "proven",
        MODELS,
        "proven|declared|symbolic",
        "Which models have their requests run together. With `declared` those whose configuration sets "
        "`max_batch_size`. With `proven` others as well, once a trial in the background has shown that rows do not "
        "change each other's answers. With `symbolic` all whose inputs and outputs have an open first dimension, which "
        "proves nothing. What became of a model is parameter `roost.batching` of its configuration.",
    )
    allow_code: CodeRepositories = _setting(
        (),
        MODELS,
        "REPOSITORY",
        "Repository whose models may be code, which runs with all rights of the server: Python models, and formats "
        "that execute what is in the file, such as pickles. Without a value, or with `*`, all repositories. Give it "
        "several times for several of them. Load calls never bring code.",
        separator=":",
        alone="*",
    )
    routes: OptionalPath = _setting(
        None,
        MODELS,
        "FILE",
        "YAML file with routes: public names that split their traffic over versions of models by weight.",
    )

    host: Text = _setting(
        "127.0.0.1",
        LISTENERS,
        "ADDRESS",
        "Address that REST, gRPC and the metrics port listen on. There is no authentication: open it to networks "
        "that you trust.",
    )
    http_port: Port = _setting(8080, LISTENERS, "PORT", "Port for REST. 0 picks a free one.")
    grpc_port: Port = _setting(8081, LISTENERS, "PORT", "Port for gRPC. 0 picks a free one.")
    admin_port: Port = _setting(
        8082,
        LISTENERS,
        "PORT",
        "Port of the admin listener, on the loopback address only: metrics, and the state that `roost status` "
        "shows. 0 picks a free one.",
    )
    metrics_port: OptionalPort = _setting(
        None,
        LISTENERS,
        "PORT",
        "Port that serves `/metrics`, and nothing else, on `--host`, for a Prometheus on another machine. "
        "0 picks a free one.",
        shown_default="none: metrics are on the admin listener alone",
    )
    ready_file: OptionalPath = _setting(
        None,
        LISTENERS,
        "FILE",
        "File to write the ports in use and the process id to, as JSON, once the server is ready.",
    )
    server_name: Text = _setting("roost", LISTENERS, "NAME", "Name that the server metadata call answers with.")

    compat: Annotated[str, BeforeValidator(choice("none", "triton"))] = _setting(
        "none",
        CLIENTS,
        "none|triton",
        "Whose status codes errors have: with `triton` those that Triton answers, for clients that look at them.",
    )
    allow_client_shm: Switch = _setting(
        False,
        CLIENTS,
        "",
        "Let clients on the same machine register regions of shared memory for tensors. Any client can then read and "
        "write what any other has registered, and other shared memory of the server's user as well.",
    )
    http_header_forward_pattern: OptionalPattern = _setting(
        None,
        CLIENTS,
        "REGEX",
        "REST headers whose name it matches anywhere are given to models as string parameters. Case means nothing, "
        "unless it starts with `(?-i)`.",
    )
    grpc_header_forward_pattern: OptionalPattern = _setting(
        None, CLIENTS, "REGEX", "The same for the metadata of gRPC calls."
    )
    http_restricted_api: RestrictionSpecs = _setting(
        (),
        CLIENTS,
        "GROUP[,GROUP]:HEADER=VALUE",
        "REST calls that are only for clients that send this header. Groups are health, metadata, inference, "
        "shared-memory, model-config, model-repository, statistics, trace and logging. Give it several times for "
        "several headers.",
        separator=";",
    )
    grpc_restricted_protocol: RestrictionSpecs = _setting(
        (),
        CLIENTS,
        "GROUP[,GROUP]:KEY=VALUE",
        "The same for gRPC, where clients send the key as metadata `triton-grpc-protocol-KEY`.",
        separator=";",
    )

    workers: Workers = _setting(
        None,
        MEMORY,
        "N",
        "Number of worker processes that models run in. Those of ONNX Runtime are always there.",
        shown_default="one for each CPU that the process may use, less one, at least one",
    )
    workers_of: WorkerCountSpecs = _setting(
        (),
        MEMORY,
        "KIND=N",
        "Number of worker processes of another kind: torch, tensorflow, sklearn or python. They are started when a "
        "model needs them. With 0 such models are refused. Give it several times for several kinds.",
        shown_default="as many as `--workers`, at most 4",
    )
    worker_idle_timeout: Duration = _setting(
        60.0,
        MEMORY,
        "DURATION",
        "How long workers of another kind stay when no model is loaded in them.",
    )
    worker_labels: WorkerLabelSpecs = _setting(
        (),
        MEMORY,
        "[N:]NAME=VALUE[,NAME=VALUE]",
        "Labels of worker N, which are counted from 0 in each kind, or of all of them. Models may require or prefer "
        "them. Give it several times for several workers.",
        separator=";",
    )
    memory_budget: AutoSize = _setting(
        None,
        MEMORY,
        "SIZE",
        "Memory that loaded models may take, without what the idle processes take. When it is full, models are "
        "evicted in the order that `--eviction` says.",
        shown_default="70 % of the memory limit of the container or else of the machine, less the measured idle use",
    )
    eviction: Annotated[str, BeforeValidator(choice("lru", "cost"))] = _setting(
        "lru",
        MEMORY,
        "lru|cost",
        "Which model goes when another one needs its memory. With `lru` the one that was not used for the longest "
        "time. With `cost` the one whose going brings the least loading back: use often, load slowly and take little "
        "memory, and a model stays; models that are used on a timer are loaded shortly before it.",
    )
    arena_size: AutoSizeOrNone = _setting(
        None,
        MEMORY,
        "SIZE",
        "Memory that the server shares with each worker at most, for large tensors on their way to and from models, "
        "beside `--memory-budget`. It is taken as it is needed and given back when it is not. What does not fit goes "
        "through a socket, which is slower; 0 is for all of it.",
        shown_default="an eighth of the memory, at most 1GiB",
    )
    state_dir: OptionalPath = _setting(
        None,
        MEMORY,
        "DIR",
        "Folder for what survives a restart, such as digests and signatures of models. "
        "One server at a time can use it.",
        shown_default="`$XDG_STATE_HOME/roost`, else `~/.local/state/roost`",
    )
    cache_dir: OptionalPath = _setting(
        None,
        MEMORY,
        "DIR",
        "Folder for prepared copies: models saved in the form that loads fastest on this machine, made in the "
        "background or by `roost prepare`. Several servers can share it, and all of it may be deleted at any time.",
        shown_default="`$XDG_CACHE_HOME/roost`, else `~/.cache/roost`",
    )
    cache_size: AutoSizeOrNone = _setting(
        None,
        MEMORY,
        "SIZE",
        "What all prepared copies may take on the disk; those used longest ago go first. 0 is for none.",
        shown_default="a tenth of the file system, at most 20GiB",
    )
    measure_models: Switch = _setting(
        True,
        MEMORY,
        "",
        "Find out in the background, after the first load of a model, what an instance of it takes, and account for "
        "that instead of an estimate. Models whose configuration sets `roost.memory_bytes` are not measured.",
    )
    preload: Switch = _setting(
        True,
        MEMORY,
        "",
        "After the start, load the models again that were in use before it, in the background, last used first, as far "
        "as they fit into the memory budget.",
    )

    request_timeout: Duration = _setting(
        60.0, LIMITS, "DURATION", "Longest time that a request may take, loading its model included."
    )
    load_timeout: Duration = _setting(60.0, LIMITS, "DURATION", "Longest time that loading one model may take.")
    drain_delay: Grace = _setting(
        0.0,
        LIMITS,
        "DURATION",
        "How long the server goes on as before when it stops, but for readiness that is off, so that load balancers "
        "notice before it stops listening.",
    )
    drain_timeout: Grace = _setting(
        30.0,
        LIMITS,
        "DURATION",
        "Longest time that the server waits for accepted requests when it stops, after `--drain-delay`. "
        "0 waits for none.",
    )
    write_timeout: Duration = _setting(
        60.0, LIMITS, "DURATION", "Longest time that a client may take to read an answer before it is cut off."
    )
    max_body: Size = _setting(
        64 * 2**20, LIMITS, "SIZE", "Largest body of a REST request, both before and after decompression."
    )
    grpc_max_message_size: Size = _setting(64 * 2**20, LIMITS, "SIZE", "Largest gRPC message.")
    body_budget: AutoSize = _setting(
        None,
        LIMITS,
        "SIZE",
        "Memory that the bodies of all requests in the server may take together. Requests over it are refused "
        "before they are read.",
        shown_default="an eighth of the memory, at most 512MiB, but never less than the largest request",
    )
    answer_budget: AutoSize = _setting(
        None,
        LIMITS,
        "SIZE",
        "Memory that large answers, and responses of decoupled models, may take together until their clients have read "
        "them. Answers over it are refused.",
        shown_default="an eighth of the memory, at most 1GiB",
    )
    max_queue: Count = _setting(
        1000, LIMITS, "N", "Number of requests that may wait for one version of a model. More are refused at once."
    )
    max_queued_bytes: AutoSize = _setting(
        None,
        LIMITS,
        "SIZE",
        "Bytes of requests that may wait for one version of a model. More are refused at once.",
        shown_default="half of `--body-budget`, but never less than the largest request",
    )

    grpc_transport: Annotated[GrpcTransport, BeforeValidator(choice("auto", "native", "grpcio"))] = _setting(
        "auto",
        GRPC,
        "auto|native|grpcio",
        "What serves gRPC: `native` is the server's own HTTP/2, which takes a fraction of the time, `grpcio` the usual "
        "library. With `auto`, as with `native`, settings that only grpcio has make it grpcio.",
    )
    grpc_infer_response_compression: Annotated[Compression, BeforeValidator(choice("none", "gzip", "deflate"))] = (
        _setting("none", GRPC, "none|gzip|deflate", "How answers to inference over gRPC are compressed.")
    )
    grpc_keepalive_time: Duration = _setting(
        7200.0, GRPC, "DURATION", "After which silence the server asks whether a connection is still alive."
    )
    grpc_keepalive_timeout: Duration = _setting(
        20.0, GRPC, "DURATION", "How long it waits for the answer before it closes the connection."
    )
    grpc_keepalive_permit_without_calls: Switch = _setting(False, GRPC, "", "Ask on connections without calls as well.")
    grpc_http2_max_pings_without_data: CountOrNone = _setting(
        2, GRPC, "N", "Number of times it asks while there is nothing else to send. 0 is any number."
    )
    grpc_http2_min_recv_ping_interval_without_data: Duration = _setting(
        300.0, GRPC, "DURATION", "Shortest time between two pings of a client without calls that is tolerated."
    )
    grpc_http2_max_ping_strikes: CountOrNone = _setting(
        2,
        GRPC,
        "N",
        "Number of pings that may come too early before the connection is closed. 0 is any number.",
    )
    grpc_max_connection_age: OptionalDuration = _setting(
        None,
        GRPC,
        "DURATION",
        "After which time a connection is to end and its client to connect anew, such as for load balancers.",
        shown_default="none: connections may live for ever",
    )
    grpc_max_connection_age_grace: OptionalDuration = _setting(
        None,
        GRPC,
        "DURATION",
        "How long calls may go on after `--grpc-max-connection-age`.",
        shown_default="none: until they end",
    )

    log_level: Annotated[str, BeforeValidator(choice("debug", "info", "warning", "error"))] = _setting(
        "info", LOGS, "debug|info|warning|error", "Least severe log lines to write."
    )
    log_format: Annotated[str, BeforeValidator(choice("human", "json"))] = _setting(
        "human", LOGS, "human|json", "Whether log lines are written for people or as one JSON object each."
    )
    access_log: Switch = _setting(False, LOGS, "", "Write a log line for each request. Tensors are never logged.")
    histogram_model: HistogramModels = _setting(
        (),
        LOGS,
        "NAME",
        "Model that gets latency histograms of its own, beside those over all models. Give it several times for "
        f"several models, at most {MAX_HISTOGRAM_MODELS}, since each costs about 100 time series.",
    )
    triton_metrics: Switch = _setting(
        True,
        LOGS,
        "",
        "Expose Triton's metrics (`nv_...`) beside those of the server: 14 time series, about 1 KB of each scrape, for "
        "every version of a model that is used.",
    )
    enable_dummy: Switch = _setting(
        False, MODELS, "", "Allow the dummy runtime, which misbehaves on command.", hidden=True
    )
