"""What the parts of the server are given, worked out from the configuration."""

from __future__ import annotations

from roost.router.mesh import MeshSettings
from roost.router.process import WorkerSpec
from roost.server.config import ServeConfig
from roost.server.grpc_limits import GrpcLimits
from roost.server.rest.limits import RestLimits
from roost.server.transport_options import TransportOptions
from roost.server.worker_labels import labels_by_worker

WORKER_SLOTS = 4
MAX_RECEIVES = 32


def mesh_settings(config: ServeConfig) -> MeshSettings:
    """Workers, queues and loads."""
    # One CPU is the front end's, where there is more than one.
    threads = max(1, (config.machine.cpus - 1) // config.workers)
    return MeshSettings(
        WorkerSpec(
            "cpu",
            "cpu",
            max(WORKER_SLOTS, threads),
            threads,
            enable_dummy=config.enable_dummy,
            log_level=config.log_level,
            log_format=config.log_format,
            arena_bytes=config.arena_bytes,
        ),
        workers=config.workers,
        worker_labels=labels_by_worker(config.worker_labels, config.workers),
        load_timeout_s=config.load_timeout_s,
        load_concurrency=config.workers + 1,
        max_queue=config.max_queue,
        max_queued_bytes=config.max_queued_bytes,
        max_answer_bytes=config.answer_budget_bytes,
        request_timeout_s=config.request_timeout_s,
    )


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
