"""One connection of the native gRPC transport: which streams are calls, how they are answered, how long it lives."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import grpc
from roost.core.errors import Limit, RoostError
from roost.core.tensors import Buffer
from roost.server import grpc_frames
from roost.server.grpc_errors import ending_of, status_of, trailing_metadata_of
from roost.server.grpc_head import CallHead, read_head
from roost.server.grpc_lean import LeanCall
from roost.server.grpc_native_call import Call
from roost.server.http2 import frames
from roost.server.http2.connection import Connection
from roost.server.http2.frames import ConnectionFailed, ErrorCode
from roost.server.http2.hpack import Header
from roost.server.http2.streams import IncomingStream, Stream

if TYPE_CHECKING:
    from roost.server.grpc_native import NativeService

_PREFACE_S: Final = 20.0
_LAST_STREAMS_S: Final = 1.0  # for calls that were on their way when the client was told to go
_LAST_BYTES_S: Final = 1.0  # for the status of calls that were cut off
_LINGER_S: Final = 1.0
_SHORTEST_PROBE_S: Final = 0.01
_IDLE_PING_S: Final = 7200.0  # how often clients without calls may ping if the server itself would not
_DRAIN_PING: Final = b"roostend"
_LAST_PING: Final = b"roostbye"
_KEEPALIVE_PING: Final = b"roostbit"


class GrpcConnection(Connection[CallHead]):
    """A connection of a client.

    Args:
        service: What all connections have in common.
    """

    def __init__(self, service: NativeService) -> None:
        super().__init__(service.limits.max_concurrent_streams, service.shared)
        self.service = service
        self.max_message_bytes = service.limits.max_message_bytes
        self.peer = ""
        self._is_draining = False
        self._is_refusing = False
        self._is_parting = False
        self._answers_at_drain = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probes = 0  # since an answer was sent
        self._answers_at_probe = 0
        self._last_ping = -math.inf
        self._answers_at_ping = 0
        self._strikes = 0
        self._write_timers: dict[int, asyncio.TimerHandle] = {}  # of streams whose answers wait

    # -- life -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.BaseProtocol``."""
        super().connection_made(transport)
        self.peer = _peer(transport.get_extra_info("peername"))
        self.service.connections.add(self)
        self._timers.append(self._loop.call_later(_PREFACE_S, self._check_preface))
        age_s = self.service.limits.max_connection_age_s
        if age_s is not None:  # not all at once, if many came together
            self._timers.append(self._loop.call_later(age_s * random.uniform(0.9, 1.1), self._retire))
        self._keep_alive()
        if self.service.is_draining:  # it was accepted just before the listener closed
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.BaseProtocol``."""
        for timer in (*self._timers, self._probe_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self.service.on_closed(self)

    def drain(self) -> None:
        """Has the client go elsewhere; closes the connection when its calls are answered."""
        if self._is_draining or self.is_lost:
            return
        self._is_draining = True
        self._answers_at_drain = self.output.answers
        self.announce_end()
        # What the client sent before it heard of it was on its way when its answer to this is here.
        self.ping(_DRAIN_PING, self._refuse)
        self._timers.append(self._loop.call_later(_LAST_STREAMS_S, self._refuse))

    def abort(self) -> None:
        """Ends the connection and its calls at once."""
        for stream in list(self.streams.values()):
            self.reset(stream, ErrorCode.CANCEL)
        if not self.is_lost:
            self.close(_LAST_BYTES_S)

    def forget(self, stream: Stream) -> None:
        """See ``Connection``."""
        self.streams.pop(stream.stream_id, None)
        if self._write_timers:
            timer = self._write_timers.pop(stream.stream_id, None)
            if timer is not None:
                timer.cancel()
        if self._is_draining:
            self._close_if_done()

    def _refuse(self) -> None:
        if not self._is_refusing and not self.is_lost:
            self._is_refusing = True
            self._open_fresh()  # or those whose data is behind this would not count
            self.refuse_streams()
            self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._is_refusing or self.streams or self.is_lost or self._is_parting:
            return
        self._is_parting = True
        if self.output.answers == self._answers_at_drain:
            self.close()
            return
        # gRPC's C core drops the answers of a call whose end it reads together with that of the connection.
        self.ping(_LAST_PING, self._part)
        self._timers.append(self._loop.call_later(_LAST_BYTES_S, self._part))

    def _part(self) -> None:
        if not self.is_lost:
            self.close()

    def _retire(self) -> None:
        grace_s = self.service.limits.max_connection_age_grace_s
        if grace_s is not None:
            self._timers.append(self._loop.call_later(grace_s, self.abort))
        self.drain()

    def _check_preface(self) -> None:
        if not self._has_begun:
            self.close()

    # -- pings ------------------------------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        silent_s = time.monotonic() - self.heard
        wait_s = max(_SHORTEST_PROBE_S, self.service.limits.keepalive_time_s - silent_s)
        self._probe_timer = self._loop.call_later(wait_s, self._probe)

    def _probe(self) -> None:
        limits = self.service.limits
        is_silent = time.monotonic() - self.heard >= limits.keepalive_time_s - _SHORTEST_PROBE_S
        if self.output.answers != self._answers_at_probe:
            self._answers_at_probe, self._probes = self.output.answers, 0
        is_wanted = bool(self.streams) or limits.keepalive_permit_without_calls
        is_allowed = not limits.max_pings_without_data or self._probes < limits.max_pings_without_data
        if is_silent and is_wanted and is_allowed:
            self._probes += 1
            self.ping(_KEEPALIVE_PING, lambda: None)
            self._probe_timer = self._loop.call_later(limits.keepalive_timeout_s, self._check_life, self.heard)
        else:
            self._keep_alive()

    def _check_life(self, heard: float) -> None:
        if self.heard > heard:
            self._keep_alive()
        else:
            self.fail(ConnectionFailed(ErrorCode.NO_ERROR, "ping_timeout"))

    def on_ping(self) -> None:
        """See ``Connection``."""
        limits = self.service.limits
        may_ping = bool(self.streams) or limits.keepalive_permit_without_calls
        interval_s = limits.min_client_ping_interval_s if may_ping else _IDLE_PING_S
        is_early = self.output.answers == self._answers_at_ping and self.heard - self._last_ping < interval_s
        self._last_ping = self.heard
        self._answers_at_ping = self.output.answers  # whoever gets answers may ping
        self._strikes = self._strikes + 1 if is_early else 0
        if limits.max_ping_strikes and self._strikes > limits.max_ping_strikes:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    # -- calls ------------------------------------------------------------------------------------------------------

    def meaning(self, headers: list[Header] | None) -> CallHead:
        """See ``Connection``."""
        head = read_head(headers)
        self.service.prepare(head)
        return head

    def take_whole(self, stream_id: int, meaning: CallHead, data: bytes) -> bool:
        """See ``Connection``."""
        return meaning.extra is not None and self.service.lean.take(self, stream_id, meaning, data, self.heard)

    def open(self, stream_id: int, meaning: CallHead, is_complete: bool) -> IncomingStream | None:
        """See ``Connection``."""
        if meaning.extra is not None and not is_complete:
            gathering = self.service.gatherings.begin(self, stream_id, meaning)
            return gathering or self.open_call(stream_id, meaning, is_complete)
        if meaning.is_malformed:
            self.output.write(frames.reset(stream_id, ErrorCode.PROTOCOL_ERROR))
        elif meaning.http_status:
            self.output.write(grpc_frames.http_refusal(stream_id, meaning.http_status))
            if not is_complete:
                self._stop_sender(stream_id)
        elif meaning.is_too_large or meaning.path not in self.service.handlers:
            code, text = grpc.StatusCode.UNIMPLEMENTED, "Method not found!"
            if meaning.is_too_large:
                code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, "received metadata size exceeds limit"
            self.output.write(grpc_frames.status_trailers(stream_id, code.value[0], text, (), is_first=True))
            if not is_complete:
                self._stop_sender(stream_id)
        else:
            return self.open_call(stream_id, meaning, is_complete)
        return None

    def open_call(self, stream_id: int, head: CallHead, is_complete: bool) -> Call:
        """Has a call answered by its handler."""
        return Call(self, stream_id, head, self.service.handlers[head.path], is_complete)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the handler of a call."""
        return self.service.spawn(work)

    def refused(self, limit: Limit) -> None:
        """Counts a message that was turned away."""
        self.service.data_plane.refused(limit)

    def respond(
        self, stream: Stream, parts: Sequence[Buffer], size_bytes: int, is_complete: bool, on_sent: Callable[[], None]
    ) -> None:
        """Answers a call with one message; ``on_sent`` is called when all of it was handed to the socket."""
        stream_id = stream.stream_id
        output = self.output
        if output.fits(stream, size_bytes + grpc_frames.PREFIX_BYTES):
            first, last = grpc_frames.around_message(stream_id, size_bytes)
            output.send_whole((first, *parts, last), size_bytes + grpc_frames.PREFIX_BYTES)
            if not is_complete:
                self._stop_sender(stream_id)
            on_sent()
            return
        # Ended when the stream is forgotten, or resets would leave them behind.
        write_timeout_s = self.service.limits.write_timeout_s
        timer = self._loop.call_later(write_timeout_s, self.reset, stream, ErrorCode.CANCEL)
        self._write_timers[stream_id] = timer
        pieces = (grpc_frames.prefix(size_bytes), *parts)
        end = grpc_frames.ok_trailers(stream_id)
        output.send(stream, grpc_frames.response_headers(stream_id), pieces, end, on_sent)
        if not is_complete:
            self._stop_sender(stream_id)

    def end(
        self,
        stream: Stream,
        code: grpc.StatusCode,
        details: str,
        metadata: Sequence[tuple[str, str]],
        is_complete: bool,
        *,
        is_first: bool,
    ) -> None:
        """Ends a call with a status."""
        if self.is_lost:
            return
        self.output.forget(stream)
        self.output.answers += 1
        stream_id = stream.stream_id
        self.output.write(grpc_frames.status_trailers(stream_id, code.value[0], details, metadata, is_first=is_first))
        if not is_complete:
            self._stop_sender(stream_id)

    def fail_call(self, stream: Stream, error: RoostError, method: str, deadline: float | None) -> None:
        """Ends a call that has sent all and was answered nothing with an error."""
        remaining_s = None if deadline is None else deadline - time.monotonic()
        status, details = ending_of(error, status_of(error, method, self.service.compat_triton), remaining_s)
        self.end(stream, status, details, trailing_metadata_of(error), True, is_first=True)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a call without a status, unless it has ended."""
        if self.streams.get(stream.stream_id) is stream:
            self._end_stream(stream, code)

    def _stop_sender(self, stream_id: int) -> None:
        """Has a client that is not done sending stop, but not at once: its library may take that for a failure."""
        self._loop.call_later(_LINGER_S, self._reset_late, stream_id)

    def _reset_late(self, stream_id: int) -> None:
        if not self.is_lost:
            self.output.write(frames.reset(stream_id, ErrorCode.NO_ERROR))

    def _tell_reset(self, stream: Stream) -> None:
        if isinstance(stream, (IncomingStream, LeanCall)):
            stream.on_reset()


def _peer(address: Any) -> str:
    """Who is at the other end, as gRPC writes it."""
    if not isinstance(address, tuple):
        return "unknown"
    host, port = address[:2]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"
