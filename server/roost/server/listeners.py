"""The sockets that the server listens on, bound before anything else is started, so that a taken port costs nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig

log = logging.getLogger(__name__)

LISTEN_BACKLOG = 1024


class Listeners:
    """The sockets of a server, bound before anything else is started, so that a taken port costs nothing."""

    def __init__(self, http: socket.socket, admin: socket.socket, metrics: socket.socket | None) -> None:
        self.http = http
        self.admin = admin
        self.metrics = metrics


@contextmanager
def open_listeners(config: ServeConfig) -> Iterator[Listeners]:
    """Binds all sockets; those that nobody took over are closed at the end.

    Raises:
        ConfigError: If an address can't be had, naming the flag.
    """
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(_bind(config.host, config.http_port, "--http-port"))
        if config.grpc_port:
            _bind(config.host, config.grpc_port, "--grpc-port").close()  # gRPC opens it itself, once there are workers
        admin = stack.enter_context(_bind("127.0.0.1", config.admin_port, "--admin-port"))
        metrics = None
        if config.metrics_port is not None:
            metrics = stack.enter_context(_bind(config.host, config.metrics_port, "--metrics-port"))
        if not _is_loopback(config.host):
            log.warning("listening on %s without authentication: whoever reaches it can use the models", config.host)
        yield Listeners(http, admin, metrics)


def _bind(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"--host: can't use {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)  # a port that another listens on may still be bound
    except OSError as error:
        listener.close()
        raise ConfigError(f"{flag}: can't listen on {host}:{port}: {error.strerror}") from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def port_of(listener: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(listener.getsockname()[1])
