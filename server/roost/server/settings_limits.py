"""Settings of limits, timeouts and connections: a part of ``roost.server.settings.Settings``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings
from roost.server.setting import GRPC, LIMITS, setting
from roost.server.values import (
    AutoSize,
    Compression,
    Count,
    CountOrNone,
    Duration,
    Grace,
    GrpcTransport,
    OptionalDuration,
    RateLimitMode,
    RateLimitSpecs,
    Size,
    Switch,
    choice,
)


class LimitSettings(BaseSettings):
    """Limits and timeouts."""

    request_timeout: Duration = setting(
        60.0, LIMITS, "DURATION", "Longest time that a request may take, loading its model included."
    )
    load_timeout: Duration = setting(60.0, LIMITS, "DURATION", "Longest time that loading one model may take.")
    drain_delay: Grace = setting(
        0.0,
        LIMITS,
        "DURATION",
        "How long the server goes on as before when it stops, but for readiness that is off, so that load balancers "
        "notice before it stops listening.",
    )
    drain_timeout: Grace = setting(
        30.0,
        LIMITS,
        "DURATION",
        "Longest time that the server waits for accepted requests when it stops, after `--drain-delay`. "
        "0 waits for none.",
    )
    write_timeout: Duration = setting(
        60.0, LIMITS, "DURATION", "Longest time that a client may take to read an answer before it is cut off."
    )
    max_body: Size = setting(
        64 * 2**20, LIMITS, "SIZE", "Largest body of a REST request, both before and after decompression."
    )
    grpc_max_message_size: Size = setting(64 * 2**20, LIMITS, "SIZE", "Largest gRPC message.")
    body_budget: AutoSize = setting(
        None,
        LIMITS,
        "SIZE",
        "Memory that the bodies of all requests in the server may take together. Requests over it are refused "
        "before they are read.",
        shown_default="an eighth of the memory, at most 512MiB, but never less than the largest request",
    )
    answer_budget: AutoSize = setting(
        None,
        LIMITS,
        "SIZE",
        "Memory that large answers, and responses of decoupled models, may take together until their clients have read "
        "them. Answers over it are refused.",
        shown_default="an eighth of the memory, at most 1GiB",
    )
    max_queue: Count = setting(
        1000, LIMITS, "N", "Number of requests that may wait for one version of a model. More are refused at once."
    )
    max_queued_bytes: AutoSize = setting(
        None,
        LIMITS,
        "SIZE",
        "Bytes of requests that may wait for one version of a model. More are refused at once.",
        shown_default="half of `--body-budget`, but never less than the largest request",
    )
    max_sequences: Count = setting(
        10_000,
        LIMITS,
        "N",
        "Number of sequences of requests, to all models together, that may have begun and not ended.",
    )
    max_sequence_bytes: Size = setting(
        256 * 2**20,
        LIMITS,
        "SIZE",
        "Memory that the state of all sequences may take that the server keeps from one request to the next.",
    )

    rate_limit: RateLimitMode = setting(
        "none",
        LIMITS,
        "none|execution_count",
        "Whether runs wait for the resources that `rate_limiter` in their model's `instance_group` names. With "
        "`execution_count` the model goes first that has had the fewest runs, weighed by its priority.",
    )
    rate_limit_resource: RateLimitSpecs = setting(
        (),
        LIMITS,
        "NAME:COUNT[:DEVICE]",
        "Number of units of a resource, on each device or on one: `cpu` or the number of a GPU. Give it several times "
        "for several resources. Needs `--rate-limit execution_count`.",
        shown_default="of each resource as many as the model needs that needs most",
    )


class GrpcSettings(BaseSettings):
    """gRPC connections."""

    grpc_transport: Annotated[GrpcTransport, BeforeValidator(choice("auto", "native", "grpcio"))] = setting(
        "auto",
        GRPC,
        "auto|native|grpcio",
        "What serves gRPC: `native` is the server's own HTTP/2, which takes a fraction of the time, `grpcio` the usual "
        "library. With `auto`, as with `native`, settings that only grpcio has make it grpcio.",
    )
    grpc_infer_response_compression: Annotated[Compression, BeforeValidator(choice("none", "gzip", "deflate"))] = (
        setting("none", GRPC, "none|gzip|deflate", "How answers to inference over gRPC are compressed.")
    )
    grpc_keepalive_time: Duration = setting(
        7200.0, GRPC, "DURATION", "After which silence the server asks whether a connection is still alive."
    )
    grpc_keepalive_timeout: Duration = setting(
        20.0, GRPC, "DURATION", "How long it waits for the answer before it closes the connection."
    )
    grpc_keepalive_permit_without_calls: Switch = setting(False, GRPC, "", "Ask on connections without calls as well.")
    grpc_http2_max_pings_without_data: CountOrNone = setting(
        2, GRPC, "N", "Number of times it asks while there is nothing else to send. 0 is any number."
    )
    grpc_http2_min_recv_ping_interval_without_data: Duration = setting(
        300.0, GRPC, "DURATION", "Shortest time between two pings of a client without calls that is tolerated."
    )
    grpc_http2_max_ping_strikes: CountOrNone = setting(
        2,
        GRPC,
        "N",
        "Number of pings that may come too early before the connection is closed. 0 is any number.",
    )
    grpc_max_connection_age: OptionalDuration = setting(
        None,
        GRPC,
        "DURATION",
        "After which time a connection is to end and its client to connect anew, such as for load balancers.",
        shown_default="none: connections may live for ever",
    )
    grpc_max_connection_age_grace: OptionalDuration = setting(
        None,
        GRPC,
        "DURATION",
        "How long calls may go on after `--grpc-max-connection-age`.",
        shown_default="none: until they end",
    )
