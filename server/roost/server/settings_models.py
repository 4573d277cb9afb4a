"""Settings of what is served, where, and to whom: a part of ``roost.server.settings.Settings``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings
from roost.registry_client.backends import MODEL_FORMATS
from roost.server.setting import CLIENTS, LISTENERS, MODELS, setting
from roost.server.values import (
    CodeRepositories,
    ModelsOrAll,
    OptionalDuration,
    OptionalPath,
    OptionalPattern,
    OptionalPort,
    Paths,
    Port,
    RestrictionSpecs,
    Switch,
    Text,
    choice,
)


class ModelSettings(BaseSettings):
    """Models, listeners, and what clients may do and see."""

    model_repository: Paths = setting(
        (),
        MODELS,
        "PATH",
        "Folder that holds the models, one folder each, in Triton's layout. Give it several times for several "
        "repositories. At least one is needed.",
        shown_default="none, required",
        separator=":",
    )
    model_control: Annotated[str, BeforeValidator(choice("none", "explicit", "poll"))] = setting(
        "none",
        MODELS,
        "none|explicit|poll",
        "Who says which models are available. With `none` all models in the repositories are, and a model is "
        "loaded by the first request for it. With `explicit` only those are that `--load-model` or a load call of "
        "the repository API names. With `poll` it is as with `none`, and the repositories are watched for models "
        "that come, change or go.",
    )
    repository_poll_interval: OptionalDuration = setting(
        None,
        MODELS,
        "DURATION",
        "How often the repositories are looked at with `--model-control poll`.",
        shown_default="15s with `--model-control poll`",
    )
    load_model: ModelsOrAll = setting(
        (),
        MODELS,
        "NAME",
        "Model to make available and load on start with `--model-control explicit`. Give it several times for "
        "several models; `*` means all.",
    )
    model_format: Annotated[str | None, BeforeValidator(choice(*MODEL_FORMATS))] = setting(
        None,
        MODELS,
        "NAME",
        f"What `modelFormat` of a KServe resource calls the models: {', '.join(MODEL_FORMATS)}. It says what models "
        "are whose configuration does not, whatever their files are called.",
        shown_default="none: the files say",
    )
    batching: Annotated[str, BeforeValidator(choice("proven", "declared", "symbolic"))] = setting(
        "proven",
        MODELS,
        "proven|declared|symbolic",
        "Which models have their requests run together. With `declared` those whose configuration sets "
        "`max_batch_size`. With `proven` others as well, once a trial in the background has shown that rows do not "
        "change each other's answers. With `symbolic` all whose inputs and outputs have an open first dimension, which "
        "proves nothing. What became of a model is parameter `roost.batching` of its configuration.",
    )
    allow_code: CodeRepositories = setting(
        (),
        MODELS,
        "REPOSITORY",
        "Repository whose models may be code, which runs with all rights of the server: Python models, and formats "
        "that execute what is in the file, such as pickles. Without a value, or with `*`, all repositories. Give it "
        "several times for several of them. Load calls never bring code.",
        separator=":",
        alone="*",
    )
    routes: OptionalPath = setting(
        None,
        MODELS,
        "FILE",
        "YAML file with routes: public names that split their traffic over versions of models by weight.",
    )
    graphs: Paths = setting(
        (),
        MODELS,
        "FILE",
        "File with inference graphs, which are KServe's InferenceGraph resources in YAML or JSON: names that put a "
        "request to several models. Give it several times for several files.",
        separator=":",
    )

    host: Text = setting(
        "127.0.0.1",
        LISTENERS,
        "ADDRESS",
        "Address that REST, gRPC and the metrics port listen on. There is no authentication: open it to networks "
        "that you trust.",
    )
    http_port: Port = setting(8080, LISTENERS, "PORT", "Port for REST. 0 picks a free one.")
    grpc_port: Port = setting(8081, LISTENERS, "PORT", "Port for gRPC. 0 picks a free one.")
    admin_port: Port = setting(
        8082,
        LISTENERS,
        "PORT",
        "Port of the admin listener, on the loopback address only: metrics, and the state that `roost status` "
        "shows. 0 picks a free one.",
    )
    metrics_port: OptionalPort = setting(
        None,
        LISTENERS,
        "PORT",
        "Port that serves `/metrics`, and nothing else, on `--host`, for a Prometheus on another machine. "
        "0 picks a free one.",
        shown_default="none: metrics are on the admin listener alone",
    )
    ready_file: OptionalPath = setting(
        None,
        LISTENERS,
        "FILE",
        "File to write the ports in use and the process id to, as JSON, once the server is ready.",
    )
    server_name: Text = setting("roost", LISTENERS, "NAME", "Name that the server metadata call answers with.")

    compat: Annotated[str, BeforeValidator(choice("none", "triton"))] = setting(
        "none",
        CLIENTS,
        "none|triton",
        "Whose status codes errors have: with `triton` those that Triton answers, for clients that look at them.",
    )
    allow_client_shm: Switch = setting(
        False,
        CLIENTS,
        "",
        "Let clients on the same machine register regions of shared memory for tensors. Any client can then read and "
        "write what any other has registered, and other shared memory of the server's user as well.",
    )
    http_header_forward_pattern: OptionalPattern = setting(
        None,
        CLIENTS,
        "REGEX",
        "REST headers whose name it matches anywhere are given to models as string parameters. Case means nothing, "
        "unless it starts with `(?-i)`.",
    )
    grpc_header_forward_pattern: OptionalPattern = setting(
        None, CLIENTS, "REGEX", "The same for the metadata of gRPC calls."
    )
    http_restricted_api: RestrictionSpecs = setting(
        (),
        CLIENTS,
        "GROUP[,GROUP]:HEADER=VALUE",
        "REST calls that are only for clients that send this header. Groups are health, metadata, inference, "
        "shared-memory, model-config, model-repository, statistics, trace and logging. Give it several times for "
        "several headers.",
        separator=";",
    )
    grpc_restricted_protocol: RestrictionSpecs = setting(
        (),
        CLIENTS,
        "GROUP[,GROUP]:KEY=VALUE",
        "The same for gRPC, where clients send the key as metadata `triton-grpc-protocol-KEY`.",
        separator=";",
    )
