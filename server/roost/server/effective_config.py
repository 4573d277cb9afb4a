"""A configuration written as a file that ``--config`` reads: what ``--print-config`` prints, secrets included."""

from __future__ import annotations

from pathlib import Path
from re import Pattern
from typing import Any

import yaml
from roost.server.config import ServeConfig
from roost.server.rate_limit_specs import rate_limit_spec
from roost.server.values import pattern_text


def effective_yaml(config: ServeConfig) -> str:
    """Writes a configuration as a file that ``--config`` reads back to the same."""
    values = _models(config) | _clients(config) | _limits(config) | _grpc(config)
    values |= {
        "log_level": config.log_level,
        "log_format": config.log_format,
        "access_log": config.access_log,
        "histogram_model": list(config.histogram_models),
        "triton_metrics": config.triton_metrics,
    }
    if config.enable_dummy:
        values["enable_dummy"] = True
    if config.fake_gpus:
        values["fake_gpus"] = True
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _models(config: ServeConfig) -> dict[str, Any]:
    return {
        "model_repository": [str(path) for path in config.model_repositories],
        "model_control": config.model_control,
        "repository_poll_interval": _optional_duration(config.poll_interval_s),
        "load_model": list(config.load_models),
        "model_format": config.model_format or None,
        "batching": config.batching,
        "allow_code": [str(path) for path in config.code_repositories],
        "routes": _text(config.routes_file),
        "graphs": [str(path) for path in config.graph_files],
    }


def _clients(config: ServeConfig) -> dict[str, Any]:
    return {
        "host": config.host,
        "http_port": config.http_port,
        "grpc_port": config.grpc_port,
        "admin_port": config.admin_port,
        "metrics_port": config.metrics_port,
        "ready_file": _text(config.ready_file),
        "server_name": config.server_name,
        "compat": "triton" if config.compat_triton else "none",
        "allow_client_shm": config.allow_client_shm,
        "http_header_forward_pattern": _pattern(config.http_forward_headers),
        "grpc_header_forward_pattern": _pattern(config.grpc_forward_headers),
        "http_restricted_api": list(config.http_restrictions.specs),
        "grpc_restricted_protocol": list(config.grpc_restrictions.specs),
    }


def _limits(config: ServeConfig) -> dict[str, Any]:
    return {
        "workers": config.workers,
        "workers_of": [f"{kind}={count}" for kind, count in config.workers_of.items()],
        "worker_idle_timeout": _duration(config.worker_idle_timeout_s),
        "worker_labels": list(config.worker_labels),
        "devices": config.devices,
        "memory_budget": _size(config.memory_budget_bytes),
        "eviction": config.eviction,
        "arena_size": config.arena_bytes and _size(config.arena_bytes),
        "state_dir": str(config.state_dir),
        "cache_dir": str(config.cache_dir),
        "cache_size": config.cache_bytes and _size(config.cache_bytes),
        "response_cache_size": config.response_cache_bytes and _size(config.response_cache_bytes),
        "measure_models": config.measure_models,
        "preload": config.preload,
        "request_timeout": _duration(config.request_timeout_s),
        "load_timeout": _duration(config.load_timeout_s),
        "drain_delay": _duration(config.drain_delay_s),
        "drain_timeout": _duration(config.drain_timeout_s),
        "write_timeout": _duration(config.write_timeout_s),
        "max_body": _size(config.max_body_bytes),
        "grpc_max_message_size": _size(config.grpc_max_message_bytes),
        "body_budget": _size(config.body_budget_bytes),
        "answer_budget": _size(config.answer_budget_bytes),
        "max_queue": config.max_queue,
        "max_queued_bytes": _size(config.max_queued_bytes),
        "rate_limit": "none" if config.rate_limits is None else "execution_count",
        "rate_limit_resource": list(map(rate_limit_spec, config.rate_limits or ())),
        "max_sequences": config.max_sequences,
        "max_sequence_bytes": _size(config.max_sequence_bytes),
    }


def _grpc(config: ServeConfig) -> dict[str, Any]:
    return {
        "grpc_transport": config.grpc_transport,
        "grpc_infer_response_compression": config.grpc_compression,
        "grpc_keepalive_time": _duration(config.grpc_keepalive_time_s),
        "grpc_keepalive_timeout": _duration(config.grpc_keepalive_timeout_s),
        "grpc_keepalive_permit_without_calls": config.grpc_keepalive_permit_without_calls,
        "grpc_http2_max_pings_without_data": config.grpc_max_pings_without_data,
        "grpc_http2_min_recv_ping_interval_without_data": _duration(config.grpc_min_client_ping_interval_s),
        "grpc_http2_max_ping_strikes": config.grpc_max_ping_strikes,
        "grpc_max_connection_age": _optional_duration(config.grpc_max_connection_age_s),
        "grpc_max_connection_age_grace": _optional_duration(config.grpc_max_connection_age_grace_s),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _pattern(pattern: Pattern[str] | None) -> str | None:
    return None if pattern is None else pattern_text(pattern)


def _size(size_bytes: int | None) -> str | int:
    """The shortest way to write a size that loses nothing."""
    if size_bytes is None:
        return "auto"
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes % 2**power == 0:
            return f"{size_bytes >> power}{unit}"
    return size_bytes


def _duration(duration_s: float) -> str:
    # Not %g, whose six digits would lose some; plain decimals, since exponents are not read.
    return f"{duration_s:.9f}".rstrip("0").rstrip(".") + "s"


def _optional_duration(duration_s: float | None) -> str | None:
    return None if duration_s is None else _duration(duration_s)
