"""From flags, environment and file to one frozen configuration: where the world outside is read, once.

A flag goes before its ``ROOST_`` variable, that before the key in the ``--config`` file, that before the default.
Whatever is wrong raises ``ConfigError`` with one line that names it as the user wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Pattern

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource
from roost.core.units import format_bytes
from roost.router.process import VISIBLE_GPUS
from roost.router.rate_limits import RateLimit
from roost.server.arguments import ConfigError
from roost.server.cache_defaults import default_cache_bytes, default_cache_dir
from roost.server.layers import Layers, flag_of, read_layers
from roost.server.machine import Machine, read_machine
from roost.server.rate_limit_specs import rate_limits
from roost.server.restrictions import Restrictions
from roost.server.settings import Settings
from roost.server.values import Compression, GrpcTransport
from roost.server.worker_counts import worker_counts
from roost.server.worker_labels import unknown_worker

_DEFAULT_BODY_BUDGET_BYTES = 512 * 2**20
_DEFAULT_ANSWER_BUDGET_BYTES = 2**30
_DEFAULT_ARENA_BYTES = 2**30
_DEFAULT_RESPONSE_CACHE_BYTES = 256 * 2**20
_DEFAULT_POLL_INTERVAL_S = 15.0
_ALL = Path("*")
"""Stands for all repositories."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What the server runs with: every setting decided, sizes in bytes, durations in seconds.

    ``memory_budget_bytes`` is None where it follows from the idle use, which nobody knows before the start;
    ``machine`` is what it follows from. ``poll_interval_s`` is None where repositories are not polled, ``rate_limits``
    where runs wait for no resources.
    ``visible_gpus`` is what CUDA shows of the GPUs, None if nothing is said of that.
    """

    model_repositories: tuple[Path, ...]
    model_control: str
    poll_interval_s: float | None
    load_models: tuple[str, ...]
    model_format: str
    batching: str
    code_repositories: tuple[Path, ...]
    routes_file: Path | None
    graph_files: tuple[Path, ...]
    host: str
    http_port: int
    grpc_port: int
    admin_port: int
    metrics_port: int | None
    ready_file: Path | None
    server_name: str
    compat_triton: bool
    allow_client_shm: bool
    http_forward_headers: Pattern[str] | None
    grpc_forward_headers: Pattern[str] | None
    http_restrictions: Restrictions
    grpc_restrictions: Restrictions
    workers: int
    workers_of: Mapping[str, int]
    worker_idle_timeout_s: float
    worker_labels: tuple[str, ...]
    devices: str
    visible_gpus: str | None
    fake_gpus: bool
    memory_budget_bytes: int | None
    eviction: str
    arena_bytes: int
    state_dir: Path
    cache_dir: Path
    cache_bytes: int
    response_cache_bytes: int
    measure_models: bool
    preload: bool
    request_timeout_s: float
    load_timeout_s: float
    drain_delay_s: float
    drain_timeout_s: float
    write_timeout_s: float
    max_body_bytes: int
    grpc_max_message_bytes: int
    body_budget_bytes: int
    answer_budget_bytes: int
    max_queue: int
    max_queued_bytes: int
    max_sequences: int
    max_sequence_bytes: int
    rate_limits: tuple[RateLimit, ...] | None
    grpc_transport: GrpcTransport
    grpc_compression: Compression
    grpc_keepalive_time_s: float
    grpc_keepalive_timeout_s: float
    grpc_keepalive_permit_without_calls: bool
    grpc_max_pings_without_data: int
    grpc_min_client_ping_interval_s: float
    grpc_max_ping_strikes: int
    grpc_max_connection_age_s: float | None
    grpc_max_connection_age_grace_s: float | None
    log_level: str
    log_format: str
    access_log: bool
    histogram_models: tuple[str, ...]
    triton_metrics: bool
    enable_dummy: bool
    machine: Machine


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What ``roost serve`` is to do: print the configuration, or run with it."""

    config: ServeConfig
    print_config: bool


def read_command(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, machine: Machine | None = None
) -> ServeCommand:
    """Reads the arguments of ``roost serve``.

    Args:
        argv: The arguments after ``serve``.
        environ: The environment; by default this process's.
        machine: What the process may use; by default it is found out.

    Raises:
        ConfigError: If anything is unknown, wrong or missing.
        SystemExit: After printing the help, if it is asked for.
    """
    environ = os.environ if environ is None else environ
    machine = read_machine() if machine is None else machine
    layers = read_layers(argv, environ)
    settings = _read_settings(layers)
    _check(settings, layers)
    config = _freeze(settings, machine, environ)
    if (number := unknown_worker(config.worker_labels, config.workers)) is not None:
        raise ConfigError(
            f"{layers.where('worker_labels')}: there is no worker {number}: they are numbered from 0 to "
            f"{config.workers - 1}"
        )
    return ServeCommand(config, layers.print_config)


def _read_settings(layers: Layers) -> Settings:
    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            ordered = (layers.flags, layers.environment, layers.file)
            return tuple(InitSettingsSource(settings_cls, init_kwargs=dict(values)) for values in ordered)

    try:
        return Layered()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = first.get("ctx", {}).get("error", first["msg"])
        raise ConfigError(f"{layers.where(name)}: {reason}") from None


def _check(settings: Settings, layers: Layers) -> None:
    """Checks what one field alone can't tell.

    Raises:
        ConfigError: At the first thing that is wrong.
    """
    if not settings.model_repository:
        raise ConfigError("no model repository: give at least one with --model-repository PATH")
    for path in settings.model_repository:
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "there is no such folder"
            raise ConfigError(f"{layers.where('model_repository')}: {what}: {path}")
    repositories = {_absolute(path) for path in settings.model_repository}
    for path in settings.allow_code:
        if path != _ALL and _absolute(path) not in repositories:
            raise ConfigError(f"{layers.where('allow_code')}: not one of the model repositories: {path}")
    if settings.routes is not None and not settings.routes.is_file():
        raise ConfigError(f"{layers.where('routes')}: there is no such file: {settings.routes}")
    for path in settings.graphs:
        if not path.is_file():
            raise ConfigError(f"{layers.where('graphs')}: there is no such file: {path}")
    if settings.ready_file is not None and not settings.ready_file.absolute().parent.is_dir():
        raise ConfigError(f"{layers.where('ready_file')}: there is no folder for it: {settings.ready_file}")
    if settings.load_model and settings.model_control != "explicit":
        raise ConfigError(f"{layers.where('load_model')}: needs --model-control explicit")
    if settings.repository_poll_interval is not None and settings.model_control != "poll":
        raise ConfigError(f"{layers.where('repository_poll_interval')}: needs --model-control poll")
    if settings.rate_limit_resource and settings.rate_limit == "none":
        raise ConfigError(f"{layers.where('rate_limit_resource')}: needs --rate-limit execution_count")
    if settings.grpc_max_connection_age_grace is not None and settings.grpc_max_connection_age is None:
        raise ConfigError(f"{layers.where('grpc_max_connection_age_grace')}: needs --grpc-max-connection-age")
    _check_ports(settings, layers)
    _check_sizes(settings, layers)


def _check_ports(settings: Settings, layers: Layers) -> None:
    taken: dict[int, str] = {}
    for name in ("http_port", "grpc_port", "admin_port", "metrics_port"):
        port = getattr(settings, name)
        if port:
            if port in taken:
                raise ConfigError(f"{layers.where(name)}: port {port} is already used for {flag_of(taken[port])}")
            taken[port] = name


def _check_sizes(settings: Settings, layers: Layers) -> None:
    """A budget that its largest request does not fit into would refuse that request for ever."""
    for name in ("max_body", "grpc_max_message_size"):
        size = getattr(settings, name)
        if settings.body_budget is not None and settings.body_budget < size:
            raise ConfigError(
                f"{layers.where('body_budget')}: {format_bytes(settings.body_budget)} is less than "
                f"{flag_of(name)}, {format_bytes(size)}"
            )


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _code_repositories(settings: Settings) -> tuple[Path, ...]:
    allowed = settings.model_repository if _ALL in settings.allow_code else settings.allow_code
    return tuple(_absolute(path) for path in allowed)


def _freeze(settings: Settings, machine: Machine, environ: Mapping[str, str]) -> ServeConfig:
    """Decides what was left open and hands everything over in the units that code uses."""
    largest = max(settings.max_body, settings.grpc_max_message_size)
    workers = settings.workers or max(1, machine.cpus - 1)
    cache_dir = settings.cache_dir or default_cache_dir(environ)
    interval_s = settings.repository_poll_interval or _DEFAULT_POLL_INTERVAL_S
    body_budget = settings.body_budget or max(largest, min(_DEFAULT_BODY_BUDGET_BYTES, machine.memory_bytes // 8))
    return ServeConfig(
        model_repositories=settings.model_repository,
        model_control=settings.model_control,
        poll_interval_s=interval_s if settings.model_control == "poll" else None,
        load_models=settings.load_model,
        model_format=settings.model_format or "",
        batching=settings.batching,
        code_repositories=_code_repositories(settings),
        routes_file=settings.routes,
        graph_files=settings.graphs,
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        admin_port=settings.admin_port,
        metrics_port=settings.metrics_port,
        ready_file=settings.ready_file,
        server_name=settings.server_name,
        compat_triton=settings.compat == "triton",
        allow_client_shm=settings.allow_client_shm,
        http_forward_headers=settings.http_header_forward_pattern,
        grpc_forward_headers=settings.grpc_header_forward_pattern,
        http_restrictions=Restrictions.parse(settings.http_restricted_api),
        grpc_restrictions=Restrictions.parse(settings.grpc_restricted_protocol),
        workers=workers,
        workers_of=worker_counts(settings.workers_of, workers),
        worker_idle_timeout_s=settings.worker_idle_timeout,
        worker_labels=settings.worker_labels,
        devices=settings.devices,
        visible_gpus=environ.get(VISIBLE_GPUS),
        fake_gpus=settings.fake_gpus,
        memory_budget_bytes=settings.memory_budget,
        eviction=settings.eviction,
        arena_bytes=(
            min(_DEFAULT_ARENA_BYTES, machine.memory_bytes // 8) if settings.arena_size is None else settings.arena_size
        ),
        state_dir=settings.state_dir or _default_state_dir(environ),
        cache_dir=cache_dir,
        cache_bytes=default_cache_bytes(cache_dir) if settings.cache_size is None else settings.cache_size,
        response_cache_bytes=(
            min(_DEFAULT_RESPONSE_CACHE_BYTES, machine.memory_bytes // 32)
            if settings.response_cache_size is None
            else settings.response_cache_size
        ),
        measure_models=settings.measure_models,
        preload=settings.preload,
        request_timeout_s=settings.request_timeout,
        load_timeout_s=settings.load_timeout,
        drain_delay_s=settings.drain_delay,
        drain_timeout_s=settings.drain_timeout,
        write_timeout_s=settings.write_timeout,
        max_body_bytes=settings.max_body,
        grpc_max_message_bytes=settings.grpc_max_message_size,
        body_budget_bytes=body_budget,
        answer_budget_bytes=settings.answer_budget or min(_DEFAULT_ANSWER_BUDGET_BYTES, machine.memory_bytes // 8),
        max_queue=settings.max_queue,
        max_queued_bytes=settings.max_queued_bytes or max(largest, body_budget // 2),
        max_sequences=settings.max_sequences,
        max_sequence_bytes=settings.max_sequence_bytes,
        rate_limits=rate_limits(settings.rate_limit_resource) if settings.rate_limit != "none" else None,
        grpc_transport=settings.grpc_transport,
        grpc_compression=settings.grpc_infer_response_compression,
        grpc_keepalive_time_s=settings.grpc_keepalive_time,
        grpc_keepalive_timeout_s=settings.grpc_keepalive_timeout,
        grpc_keepalive_permit_without_calls=settings.grpc_keepalive_permit_without_calls,
        grpc_max_pings_without_data=settings.grpc_http2_max_pings_without_data,
        grpc_min_client_ping_interval_s=settings.grpc_http2_min_recv_ping_interval_without_data,
        grpc_max_ping_strikes=settings.grpc_http2_max_ping_strikes,
        grpc_max_connection_age_s=settings.grpc_max_connection_age,
        grpc_max_connection_age_grace_s=settings.grpc_max_connection_age_grace,
        log_level=settings.log_level,
        log_format=settings.log_format,
        access_log=settings.access_log,
        histogram_models=settings.histogram_model,
        triton_metrics=settings.triton_metrics,
        enable_dummy=settings.enable_dummy,
        machine=machine,
    )


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification says to ignore relative ones
        return Path(base) / "roost"
    home = environ.get("HOME", "")
    try:
        return (Path(home) if home else Path.home()) / ".local" / "state" / "roost"
    except RuntimeError:
        raise ConfigError("there is no home folder to keep state in: give --state-dir") from None
