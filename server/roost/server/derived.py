"""What the parts of the server are given, worked out from the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from roost.router.mesh import KindSettings, MeshSettings
from roost.router.process import CPU, WorkerSpec
from roost.runtimes.adapters import DEFAULT_KIND, GPU_SUFFIX, kind_of
from roost.server.config import ServeConfig
from roost.server.gpus import FoundGpus
from roost.server.grpc_limits import GrpcLimits
from roost.server.rest.limits import RestLimits
from roost.server.transport_options import TransportOptions
from roost.server.worker_labels import labels_by_worker, labels_of_all

WORKER_SLOTS = 4
PROGRAM_KIND = kind_of("python")
PROGRAM_SLOTS = 32
"""Each of them has a process; a run only waits for it in the worker, and may do so for something else in turn."""

MAX_RECEIVES = 32


def mesh_settings(config: ServeConfig, found: FoundGpus | None = None) -> MeshSettings:
    """Workers, queues and loads; workers on the GPUs that were found, if any were."""
    found = found or FoundGpus()
    return MeshSettings(
        _worker_spec(config, DEFAULT_KIND, config.workers, found),
        gpus=found.gpus if found.kinds else (),
        gpu_kinds=tuple(tuple(_gpu_specs(config, kind, found)) for kind in found.kinds),
        gpu_labels=labels_of_all(config.worker_labels),
        workers=config.workers,
        worker_labels=_labels(config, config.workers),
        other_kinds=tuple(
            KindSettings(_worker_spec(config, kind, count, found), count, _labels(config, count))
            for kind, count in config.workers_of.items()
        ),
        worker_idle_timeout_s=config.worker_idle_timeout_s,
        load_timeout_s=config.load_timeout_s,
        load_concurrency=config.workers + 1,
        max_queue=config.max_queue,
        max_queued_bytes=config.max_queued_bytes,
        max_sequences=config.max_sequences,
        max_sequence_bytes=config.max_sequence_bytes,
        max_answer_bytes=config.answer_budget_bytes,
        request_timeout_s=config.request_timeout_s,
        rate_limits=config.rate_limits,
    )


def _gpu_specs(config: ServeConfig, kind: str, found: FoundGpus) -> Iterator[WorkerSpec]:
    """One worker for each GPU, which is the only one that it sees."""
    base = kind.removesuffix(GPU_SUFFIX)
    like = _worker_spec(config, base, config.workers_of.get(base, config.workers), found)
    for gpu in found.gpus:
        yield replace(like, kind=kind, device=gpu.name, visible_gpus=gpu.uuid, fake_gpu=config.fake_gpus)


def _worker_spec(config: ServeConfig, kind: str, workers: int, found: FoundGpus) -> WorkerSpec:
    # One CPU is the front end's, where there is more than one.
    threads = max(1, (config.machine.cpus - 1) // max(1, workers))
    return WorkerSpec(
        kind,
        CPU,
        PROGRAM_SLOTS if kind == PROGRAM_KIND else max(WORKER_SLOTS, threads),
        threads,
        enable_dummy=config.enable_dummy and kind == DEFAULT_KIND,
        log_level=config.log_level,
        log_format=config.log_format,
        arena_bytes=config.arena_bytes,
        # What has no budget on a GPU must not take memory there either.
        visible_gpus="" if found.kinds else None,
    )


def _labels(config: ServeConfig, workers: int) -> tuple[Mapping[str, str], ...]:
    """The labels of the workers of one kind: those of the first are the first ones' of the others."""
    return labels_by_worker(config.worker_labels, max(workers, config.workers))[:workers]


def grpc_limits(config: ServeConfig) -> GrpcLimits:
    """As many messages at once as fit into an eighth of the memory, each of them twice while it is received."""
    size_bytes = config.grpc_max_message_bytes
    receives = config.machine.memory_bytes // 8 // (2 * size_bytes)
    return GrpcLimits(
        max_message_bytes=size_bytes,
        max_concurrent_receives=min(MAX_RECEIVES, max(2, receives)),
        write_timeout_s=config.write_timeout_s,
        transport=config.grpc_transport,
        response_compression=config.grpc_compression,
        keepalive_time_s=config.grpc_keepalive_time_s,
        keepalive_timeout_s=config.grpc_keepalive_timeout_s,
        keepalive_permit_without_calls=config.grpc_keepalive_permit_without_calls,
        max_pings_without_data=config.grpc_max_pings_without_data,
        min_client_ping_interval_s=config.grpc_min_client_ping_interval_s,
        max_ping_strikes=config.grpc_max_ping_strikes,
        max_connection_age_s=config.grpc_max_connection_age_s,
        max_connection_age_grace_s=config.grpc_max_connection_age_grace_s,
    )


def grpc_options(config: ServeConfig) -> TransportOptions:
    """What the operator chose for gRPC."""
    return TransportOptions(config.compat_triton, config.grpc_forward_headers, config.grpc_restrictions)


def rest_limits(config: ServeConfig) -> RestLimits:
    """How much clients may send, and how long they may take to read."""
    return RestLimits(max_body_bytes=config.max_body_bytes, write_timeout_s=config.write_timeout_s)


def rest_options(config: ServeConfig) -> TransportOptions:
    """What the operator chose for REST."""
    return TransportOptions(config.compat_triton, config.http_forward_headers, config.http_restrictions)
