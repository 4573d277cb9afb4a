"""Limits and transport settings of the gRPC server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import grpc
from roost.server.values import GrpcTransport

log = logging.getLogger(__name__)

INT32_MAX = 2**31 - 1

_COMPRESSION = {
    "none": None,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What clients may ask of the server, and how connections are kept.

    Messages on their way in take at most ``2 * max_concurrent_receives * max_message_bytes``, as much again those of
    streams, and ``2 * max_message_bytes`` each of 8 messages of calls other than inference and loading; calls that wait
    for their turn take 64 KiB each. Streams whose clients are silent or slow for longer than ``stream_silence_s`` may
    go beyond that, up to ``max_streams`` messages.

    Attributes:
        max_message_bytes: Largest message of a client, before and after unpacking.
        max_concurrent_receives: How many inference or load messages are received at once. More help clients on slow
            networks, fewer bound memory more tightly.
        max_waiting_receives: How many more calls may wait for their turn; any further one is refused.
        max_streams: How many calls of ModelStreamInfer may be open; any further one is refused.
        max_stream_requests: How many requests of one of them are received before the first of them is answered.
        stream_silence_s: How long a stream that is new, or sends large messages, may keep others from sending.
        max_concurrent_streams: Calls in flight on one connection; the client's library holds back the others.
        response_compression: How responses are packed for clients that accept it.
        health_poll_s: How often a health watch looks at the server's state.
        keepalive_time_s: A silent connection is probed after this time.
        keepalive_timeout_s: A probe unanswered for this time ends the connection.
        keepalive_permit_without_calls: Whether connections without calls are probed too.
        max_pings_without_data: How many probes may go out while nothing else does; 0 for any number.
        min_client_ping_interval_s: Clients without calls that ping more often are cut off.
        max_ping_strikes: How many such pings are forgiven; 0 for any number.
        max_connection_age_s: Connections are asked to end after this time; None for never.
        max_connection_age_grace_s: How long calls in flight then have before the connection is cut; None for ever. On
            grpcio the only thing that ends a call whose client does not read its answer.
        write_timeout_s: How long a client may take to read an answer, but for those of streams; not on grpcio.
        transport: What serves: ``native``, ``grpcio`` or, with ``auto``, native unless a setting needs grpcio.
    """

    max_message_bytes: int = 64 * 2**20
    max_concurrent_receives: int = 32
    max_waiting_receives: int = 8192
    max_streams: int = 1024
    max_stream_requests: int = 64
    stream_silence_s: float = 1.0
    max_concurrent_streams: int = 1024
    response_compression: Literal["none", "gzip", "deflate"] = "none"
    health_poll_s: float = 0.5
    keepalive_time_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    keepalive_permit_without_calls: bool = False
    max_pings_without_data: int = 2
    min_client_ping_interval_s: float = 300.0
    max_ping_strikes: int = 2
    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float | None = None
    write_timeout_s: float = 60.0
    transport: GrpcTransport = "auto"

    def lacking(self) -> str | None:
        """The setting that the native transport does not have; None if it has all."""
        return None if self.response_compression == "none" else "--grpc-infer-response-compression"

    def use_native(self) -> bool:
        """Whether the native transport serves, and a line in the log if it was to be but can't."""
        lacking = self.lacking()
        if lacking is not None and self.transport != "grpcio":
            log.warning("gRPC is served by grpcio, since the native transport does not have %s", lacking)
        return lacking is None and self.transport != "grpcio"

    def compression(self) -> grpc.Compression | None:
        """The compression of responses as grpc knows it."""
        return _COMPRESSION[self.response_compression]

    def channel_arguments(self) -> list[tuple[str, int]]:
        """The settings as gRPC's core knows them."""
        arguments = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", INT32_MAX),
            # The core would unpack a message without a bound and look at its size afterwards: we do it ourselves.
            ("grpc.per_message_decompression", 0),
            # Probing enlarges the window of calls whose message nobody has asked for yet, so they could fill memory.
            ("grpc.http2.bdp_probe", 0),
            # A taken port must be an error, not a second server on it.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_time_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            # Without it the core waits a minute for the answer to a ping, whatever the keepalive timeout is.
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", int(self.keepalive_permit_without_calls)),
            ("grpc.http2.max_pings_without_data", self.max_pings_without_data),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_client_ping_interval_s)),
            ("grpc.http2.max_ping_strikes", self.max_ping_strikes),
        ]
        if self.max_connection_age_s is not None:
            arguments.append(("grpc.max_connection_age_ms", _ms(self.max_connection_age_s)))
        if self.max_connection_age_grace_s is not None:
            arguments.append(("grpc.max_connection_age_grace_ms", _ms(self.max_connection_age_grace_s)))
        return arguments


def _ms(seconds: float) -> int:
    return min(INT32_MAX, int(seconds * 1000))
