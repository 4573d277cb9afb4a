"""The life of a server, from the configuration to the exit code; it can be read from top to bottom.

Start: limits, state folder, ports, workers, models named on the command line, listeners, ready file. Stop: readiness
off, a pause for load balancers if it is set, listeners closed, requests in flight answered under one deadline, workers
ended. A second signal exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import uvloop
from aiohttp import web
from roost.core.errors import RoostError
from roost.core.exhaustion import is_exhausted, what_is_missing
from roost.core.tasks import in_background
from roost.core.threads import thread_pool
from roost.core.units import format_bytes
from roost.core.version import __version__
from roost.registry_client.backends import BACKENDS
from roost.registry_client.repository import LocalRepository
from roost.router.assembly import router
from roost.router.graph_files import LOOPBACK, OwnAddress, load_graphs
from roost.router.graphs import Graph
from roost.router.learned import Learned
from roost.router.proof import BatchingMode
from roost.router.router import Router
from roost.router.store_sqlite import SqliteStore
from roost.router.traffic import Traffic, load_routes
from roost.runtimes.adapters import KINDS, installed_runtimes, runtime_names
from roost.runtimes.memory import private_bytes, shared_out_bytes
from roost.runtimes.niceness import take_short_turns
from roost.runtimes.prepared.cache import CopyCache
from roost.server.admin import build_admin_app, build_metrics_app
from roost.server.arguments import ConfigError
from roost.server.client_memory import ClientMemory
from roost.server.config import ServeConfig
from roost.server.data_plane import RouterDataPlane
from roost.server.derived import grpc_limits, grpc_options, mesh_settings, rest_limits, rest_options
from roost.server.garbage import collect_when_idle, frozen_survivors
from roost.server.gpus import FoundGpus, find_gpus, say
from roost.server.graph_data_plane import GraphDataPlane
from roost.server.grpc_server import GrpcServer, build_grpc_server
from roost.server.idle_memory import trim_when_idle
from roost.server.known_sizes import STORE_FILE
from roost.server.listeners import LISTEN_BACKLOG, Listeners, open_listeners, port_of
from roost.server.log_settings import LogBook
from roost.server.logs import configure_logging, set_level
from roost.server.machine import max_mappings
from roost.server.metrics import Metrics
from roost.server.openapi import build_document
from roost.server.rest.app import RestRunner, build_rest_app, lean_requests
from roost.server.sizing import limits_of

log = logging.getLogger(__name__)

_THREADS = 2
"""For what blocks now and then and has no threads of its own."""


def serve(config: ServeConfig) -> int:
    """Runs the server until a signal ends it.

    Returns:
        0 after a graceful end.

    Raises:
        ConfigError: If something is wrong with what it was given; nothing was started then.
    """
    configure_logging(config.log_level, config.log_format)
    if not _has_runtime(config):
        raise ConfigError("no runtime is installed: pip install 'roost[onnx]'")
    _raise_file_limit()
    found = find_gpus(config)
    try:
        traffic = load_routes(config.routes_file) if config.routes_file is not None else Traffic()
        graphs = load_graphs(config.graph_files, OwnAddress(LOOPBACK | {config.host}, config.http_port))
        repositories = [LocalRepository(path, config.model_format) for path in config.model_repositories]
    except RoostError as error:
        raise ConfigError(error.message) from None
    with (
        _state_folder(config.state_dir) as state_dir,
        open_listeners(config) as listeners,
        _event_loop() as runner,
    ):
        try:
            runner.run(_serve(config, repositories, traffic, graphs, found, state_dir, listeners))
        except asyncio.CancelledError:
            log.info("stopped before the start was complete")
        except (BaseExceptionGroup, OSError, RuntimeError) as error:  # task groups wrap what ends them
            cause = _only_cause(error)
            if isinstance(cause, RoostError):
                log.error("%s", cause.message)
            elif is_exhausted(cause):
                log.error("the server ends: there are not enough %s", what_is_missing(cause))
            else:
                raise cause from None
            return 1
    return 0


@contextmanager
def _event_loop() -> Iterator[asyncio.Runner]:
    """Runs what the server does; at the end all of it has ended."""
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        yield runner
    finally:
        try:
            runner.close()
        except RuntimeError as error:  # asyncio ends its threads from one more, of which there may be none
            if not is_exhausted(error):
                raise


def _has_runtime(config: ServeConfig) -> bool:
    """Whether a framework is installed, or models need none."""
    names = [name for kind in KINDS for name in runtime_names(kind, config.enable_dummy)]
    return bool(config.code_repositories) or any(installed_runtimes([n]) for n in names if not BACKENDS[n].is_code)


def _only_cause(error: BaseException) -> BaseException:
    """What is in a group of one error, or of several that all say that something is exhausted; else the group."""
    while isinstance(error, BaseExceptionGroup):
        first = error.exceptions[0]
        if len(error.exceptions) > 1 and not (is_exhausted(first) and error.split(is_exhausted)[1] is None):
            break
        error = first
    return error


async def _serve(
    config: ServeConfig,
    repositories: list[LocalRepository],
    traffic: Traffic,
    graphs: Mapping[str, Graph],
    found: FoundGpus,
    state_dir: Path,
    listeners: Listeners,
) -> None:
    signals = _Signals()
    learned = Learned(SqliteStore(state_dir / STORE_FILE))
    started = time.monotonic()
    with (
        contextlib.closing(learned),
        _copy_cache(config) as cache,
        thread_pool(_THREADS, "other") as others,
        frozen_survivors(),
    ):
        take_short_turns()
        say(found)
        asyncio.get_running_loop().set_default_executor(others)
        running = _router(config, repositories, traffic, found, learned, cache, state_dir / "overrides")
        async with running as routing, _data_plane(config, routing, graphs) as data_plane:
            _set_limits(config, routing)
            await routing.load_at_start(config.load_models)
            async with _transports(config, data_plane, routing, listeners, graphs) as ports:
                gc.collect()  # most of what lives now does so for good
                log.info(
                    "roost %s serves %d models after %.1f s: %s",
                    __version__,
                    routing.view().models,
                    time.monotonic() - started,
                    ", ".join(f"{name} {config.host}:{port}" for name, port in ports.items()),
                )
                if config.ready_file is not None:
                    _write_ready_file(config.ready_file, ports)
                signals.serving = True
                preloading = in_background(routing.preload()) if config.preload else contextlib.nullcontext()
                tidying = in_background(trim_when_idle(data_plane.bodies))
                collecting = in_background(collect_when_idle(lambda: routing.busy))
                async with tidying, collecting, preloading:
                    await _until_stopped(config, data_plane, signals)
            log.info("all requests are answered or out of time; the workers end now")


def _router(
    config: ServeConfig,
    repositories: list[LocalRepository],
    traffic: Traffic,
    found: FoundGpus,
    learned: Learned,
    cache: CopyCache | None,
    overrides_dir: Path,
) -> AbstractAsyncContextManager[Router]:
    return router(
        repositories,
        learned,
        mesh_settings(config, found),
        traffic,
        explicit=config.model_control == "explicit",
        poll_interval_s=config.poll_interval_s,
        overrides_dir=overrides_dir,
        model_format=config.model_format,
        batching=BatchingMode(config.batching),
        eviction=config.eviction,
        cache=cache,
        measure=config.measure_models,
        code_from=config.code_repositories,
        response_cache_bytes=config.response_cache_bytes,
        read_gpu=found.read,
    )


async def _until_stopped(config: ServeConfig, data_plane: RouterDataPlane, signals: _Signals) -> None:
    """Waits for the signal that ends the server; then it is not ready, and load balancers may notice."""
    await signals.stop.wait()
    data_plane.drain()
    if config.ready_file is not None:
        config.ready_file.unlink(missing_ok=True)
    if config.drain_delay_s:
        log.info("stopping: not ready any more, requests are taken for another %g s", config.drain_delay_s)
        await asyncio.sleep(config.drain_delay_s)
    log.info("stopping: no new connections, requests in flight have %g s", config.drain_timeout_s)


@asynccontextmanager
async def _data_plane(
    config: ServeConfig, routing: Router, graphs: Mapping[str, Graph]
) -> AsyncIterator[RouterDataPlane]:
    """A data plane that takes requests; without graphs none of them is looked at for one."""
    make = partial(GraphDataPlane, graphs) if graphs else RouterDataPlane
    data_plane = make(
        routing,
        server_name=config.server_name,
        request_timeout_s=config.request_timeout_s,
        body_budget_bytes=config.body_budget_bytes,
        log_requests=config.access_log,
        shared_memory=ClientMemory(offered=config.allow_client_shm),
        log_book=LogBook(config.log_level, set_level),
    )
    data_plane.open()
    try:
        yield data_plane
    finally:
        await data_plane.close()


@asynccontextmanager
async def _transports(
    config: ServeConfig,
    data_plane: RouterDataPlane,
    routing: Router,
    listeners: Listeners,
    graphs: Mapping[str, Graph],
) -> AsyncIterator[dict[str, int]]:
    """Opens all listeners; at the end closes REST and gRPC together, the admin listener after them."""
    shown = routing.shown if config.triton_metrics else None
    limits = rest_limits(config)
    rest = build_rest_app(data_plane, limits, rest_options(config), graphs)
    metrics = Metrics(
        routing.stats,
        lambda: data_plane.view(instances=False),
        config.histogram_models,
        shown,
        lambda: lean_requests(rest),
        lambda worker: routing.instances(worker.id),
        graphs.values(),
    )
    async with AsyncExitStack() as stack:
        admin = build_admin_app(data_plane.view, metrics, lambda: build_document(rest), data_plane.activity)
        await stack.enter_async_context(_site(web.AppRunner(admin, access_log=None), listeners.admin))
        if listeners.metrics is not None:
            app = build_metrics_app(metrics)
            await stack.enter_async_context(_site(web.AppRunner(app, access_log=None), listeners.metrics))
        grpc_server = build_grpc_server(data_plane, grpc_limits(config), grpc_options(config))
        grpc_port = _bind_grpc(grpc_server, config)
        runner = RestRunner(rest, limits)
        await runner.setup()
        await web.SockSite(runner, listeners.http, backlog=LISTEN_BACKLOG).start()
        await grpc_server.start()
        ports = {"http": port_of(listeners.http), "grpc": grpc_port, "admin": port_of(listeners.admin)}
        if listeners.metrics is not None:
            ports["metrics"] = port_of(listeners.metrics)
        try:
            yield ports
        finally:
            await asyncio.gather(runner.drain(config.drain_timeout_s), grpc_server.stop(config.drain_timeout_s))


@asynccontextmanager
async def _site(runner: web.AppRunner, listener: socket.socket) -> AsyncIterator[None]:
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=LISTEN_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


def _set_limits(config: ServeConfig, routing: Router) -> None:
    """The memory budget is private bytes of instances alone, so the idle processes' come off the default first."""
    idle_bytes = private_bytes()
    for pid in routing.pids:
        with contextlib.suppress(OSError):  # it has just ended
            idle_bytes += shared_out_bytes(pid)
    limits = limits_of(config.memory_budget_bytes, config.machine.memory_bytes, idle_bytes, max_mappings())
    routing.set_limits(limits)
    log.info(
        "memory budget for models: %s, %s with the files that they map; idle use: %s",
        format_bytes(limits.private_bytes),
        format_bytes(int(limits.memory_bytes)),
        format_bytes(idle_bytes),
    )


class _Signals:
    """SIGTERM and SIGINT: the first ends the server gracefully, the second at once, and the workers with it."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.serving = False
        self._main = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        self.stop.set()
        if not self.serving and self._main is not None:
            self._main.cancel()  # nothing to drain yet


@contextmanager
def _copy_cache(config: ServeConfig) -> Iterator[CopyCache | None]:
    """The folder of prepared copies, while the server uses it; a server can do without."""
    with contextlib.ExitStack() as stack:
        cache = None
        try:
            if config.cache_bytes:
                cache = CopyCache(config.cache_dir, config.cache_bytes)
                stack.enter_context(cache.in_use())
        except OSError as error:
            log.warning("there are no prepared copies: %s can't be used: %s", config.cache_dir, error.strerror)
            cache = None
        yield cache


@contextmanager
def _state_folder(path: Path) -> Iterator[Path]:
    """Makes the state folder if need be and keeps other servers out of it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--state-dir: can't use {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"--state-dir: another server uses {path}") from None
    else:
        yield path
    finally:
        os.close(lock)


def _bind_grpc(server: GrpcServer, config: ServeConfig) -> int:
    try:
        return server.bind(config.host, config.grpc_port)
    except OSError as error:
        raise ConfigError(f"--grpc-port: {error}") from None


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _write_ready_file(path: Path, ports: dict[str, int]) -> None:
    """Writes the file whole or not at all, since others wait for it to appear."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({**ports, "pid": os.getpid()}) + "\n", encoding="utf-8")
    partial.replace(path)
