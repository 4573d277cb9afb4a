"""What the worker does: runs, loads and unloads of models, each in the thread that it belongs in."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from roost.core.errors import Cancelled, Code, Internal, ResourceExhausted
from roost.core.frames import FrameType, Header, control_frame, error_frame, parse_control, parse_credit
from roost.runtimes.calls import RouterCalls
from roost.runtimes.child import COPIED
from roost.runtimes.failures import failure_frame
from roost.runtimes.instances import Instance, InstanceTable
from roost.runtimes.leftovers import Leftovers, left_by_load
from roost.runtimes.link import Link
from roost.runtimes.memory import private_bytes, trim_memory
from roost.runtimes.niceness import let_runs_go_first
from roost.runtimes.protocol import EndsProcesses, LoadedApart, LoadedModel, LoadSpec, Runtime
from roost.runtimes.reading import Reading
from roost.runtimes.runs import Runs
from roost.runtimes.shared import Shared
from roost.runtimes.signatures import check_signature
from roost.runtimes.warmup import WarmUp

_IGNORED = frozenset({FrameType.HELLO, FrameType.PONG})


class Executor:
    """Serves one link.

    Args:
        link: The link to the router.
        runtimes: Runtimes by name.
        shared: The memory that the router shares.
        slots: Runs at a time.
        threads: Threads that one run may use.
    """

    def __init__(self, link: Link, runtimes: Mapping[str, Runtime], shared: Shared, slots: int, threads: int) -> None:
        self._link = link
        self._runtimes = runtimes
        self._threads = threads
        self._instances = InstanceTable()
        self._runs = Runs(link, self._instances, shared, slots, threads)
        self._reading = Reading(link, self._runs, self._dispatch)
        self._calls = RouterCalls(link)
        self._loads: dict[int, LoadSpec] = {}
        self._loads_lock = threading.Lock()
        self._leftovers = Leftovers()
        self._grown_bytes: dict[int, int] = {}  # by how much loading an instance has made the process grow

    def start(self) -> None:
        """Starts to work, in threads.

        Raises:
            RuntimeError: If there are none to be had.
        """
        self._runs.start()
        self._reading.start()

    def wait(self) -> None:
        """Returns when the router has closed the link.

        Raises:
            FrameError: If what comes over the link are not frames.
        """
        self._reading.wait()

    def _dispatch(self, header: Header, payload: memoryview) -> None:
        request = header.request
        match header.type:
            case FrameType.RESPONSE | FrameType.ERROR:
                self._calls.answered(header, payload)
            case FrameType.CREDIT:
                self._runs.grant(request, parse_credit(payload))
            case FrameType.PING:
                self._link.send([control_frame(FrameType.PONG, request)])
            case FrameType.CANCEL:
                self._cancel(request)
            case FrameType.LOAD:
                self._answer(request, self._begin_load, parse_control(payload))
            case FrameType.UNLOAD:
                self._answer(request, self._begin_unload, parse_control(payload))
            case FrameType.TRIM:
                self._answer(request, self._begin_trim, parse_control(payload))
            case FrameType.STATUS:
                self._link.send([self._status(request)])
            case ignored if ignored in _IGNORED:
                pass
            case other:
                self._link.send([error_frame(request, Code.UNIMPLEMENTED, f"this worker takes no {other.name} frames")])

    def _answer(self, request: int, begin: Callable[[int, dict[str, Any]], None], fields: dict[str, Any]) -> None:
        """Begins a control request; whatever that raises is its answer."""
        try:
            begin(request, fields)
        except (KeyError, TypeError, ValueError, AttributeError):
            self._link.send([error_frame(request, Code.INVALID_ARGUMENT, "fields are missing or of the wrong type")])
        except Exception as error:
            self._link.send([failure_frame(request, error, "the request")])

    def _cancel(self, request: int) -> None:
        if self._runs.cancel(request):
            return
        with self._loads_lock:
            spec = self._loads.get(request)
            if spec is not None:
                spec.cancellation.cancel()

    def _begin_load(self, request: int, fields: dict[str, Any]) -> None:
        instance = int(fields["instance"])
        backend = str(fields["backend"])
        options = {str(key): str(value) for key, value in fields.get("options", {}).items()}
        prepared = bool(fields.get("prepared", False))
        path, root = str(fields["path"]), str(fields["root"])
        threads = _threads_for(int(fields.get("threads", 0)), self._threads)
        spec = LoadSpec(path, root, threads, options, prepared=prepared, calls=self._calls)
        warmup = WarmUp.of(fields)
        if backend not in self._runtimes:
            raise Internal(f"this worker has no runtime '{backend}': see its log for why it could not be imported")
        self._instances.reserve(instance)
        with self._loads_lock:
            self._loads[request] = spec
        try:
            runtime = self._runtimes[backend]
            # The threads that run a model are made by the one that loads it, and would be as nice as that; so would
            # be processes.
            makes_some = spec.makes_threads or getattr(runtime, "loads_elsewhere", False)
            in_thread = _in_thread if makes_some else _in_nice_thread
            in_thread(f"load-{instance}", self._load, request, instance, runtime, spec, warmup)
        except ResourceExhausted:
            self._end_load(request, instance)
            raise

    def _load(self, request: int, instance: int, runtime: Runtime, spec: LoadSpec, warmup: WarmUp) -> None:
        try:
            reply = self._try_load(request, instance, runtime, spec, warmup)
        except BaseException as error:  # whatever a model has raised: somebody waits for an answer
            if COPIED:
                os._exit(0)
            self._end_load(request, instance)
            reply = failure_frame(request, error, "the load")
        self._link.send([reply])

    def _try_load(self, request: int, instance: int, runtime: Runtime, spec: LoadSpec, warmup: WarmUp) -> bytes:
        before_bytes = private_bytes()
        start_ns = time.monotonic_ns()
        try:
            model = _loaded(runtime, spec, warmup)
            if COPIED:
                os._exit(0)
        finally:
            load_ns = time.monotonic_ns() - start_ns
            self._leftovers.add(left_by_load(spec.root))
        after_bytes = private_bytes()
        fields = {
            "instance": instance,
            "signature": model.signature.to_json(),
            "load_ns": load_ns,
            "private_bytes": after_bytes,
        }
        if isinstance(model, LoadedApart):
            fields["instance_bytes"] = model.own_bytes()
        with self._loads_lock:
            # Decided under the lock: a CANCEL comes either before, and no instance appears, or too late.
            if not spec.cancellation.cancelled:
                del self._loads[request]
                self._grown_bytes[instance] = after_bytes - before_bytes
                self._instances.put(instance, model)
                return control_frame(FrameType.STATUS, request, fields)
        model.close()
        self._leftovers.add(after_bytes - before_bytes)
        raise Cancelled("the load was cancelled")

    def _end_load(self, request: int, instance: int) -> None:
        with self._loads_lock:
            self._loads.pop(request, None)
        self._instances.abandon(instance)

    def _begin_unload(self, request: int, fields: dict[str, Any]) -> None:
        instance_id = int(fields["instance"])
        # Taken out here, not in the thread: runs that come after this frame must not find it.
        instance = self._instances.remove(instance_id)
        try:
            _in_nice_thread(f"unload-{instance_id}", self._unload, request, instance_id, instance)
        except ResourceExhausted:
            # No thread to be had: do it here, late answers are better than a leaked model.
            self._unload(request, instance_id, instance)

    def _unload(self, request: int, instance_id: int, instance: Instance) -> None:
        try:
            self._instances.wait_idle(instance)
            instance.model.close()
            self._leftovers.add(self._grown_bytes.pop(instance_id, 0))
            fields = {"instance": instance_id, "private_bytes": private_bytes()}
            reply = control_frame(FrameType.STATUS, request, fields)
        except BaseException as error:
            reply = failure_frame(request, error, "the unload")
        self._link.send([reply])

    def _begin_trim(self, request: int, fields: dict[str, Any]) -> None:
        limit_bytes = int(fields.get("process_limit_bytes", 0))
        if limit_bytes:
            _in_thread("limit", self._limit, request, limit_bytes)
            return
        _in_thread("trim", self._trim, request, bool(fields.get("collect", False)))

    def _trim(self, request: int, collect: bool) -> None:
        """Gives back what is free, after collecting garbage if it is worth that all threads stop meanwhile.

        Not in a nice thread: runs wait for the interpreter and the heap while it has them.
        """
        if collect:
            gc.collect()
        trim_memory()
        self._link.send([control_frame(FrameType.STATUS, request, {"private_bytes": private_bytes()})])

    def _limit(self, request: int, limit_bytes: int) -> None:
        """Ends the processes of models that take more: their memory is not this process's to give back."""
        for runtime in self._runtimes.values():
            if isinstance(runtime, EndsProcesses):
                runtime.end_larger_than(limit_bytes)
        self._link.send([control_frame(FrameType.STATUS, request, {"private_bytes": private_bytes()})])

    def _status(self, request: int) -> bytes:
        fields = {
            "private_bytes": private_bytes(),
            "instances": self._instances.ids(),
            "running": self._runs.running(),
        }
        return control_frame(FrameType.STATUS, request, fields)


def _threads_for(asked: int, share: int) -> int:
    """How many threads a run may use whose model asks for so many, 0 for its share of the CPUs."""
    return min(asked, max(share, os.cpu_count() or 1)) if asked > 0 else share


def _loaded(runtime: Runtime, spec: LoadSpec, warmup: WarmUp) -> LoadedModel:
    """A model that has run what it is to run before it takes requests."""
    model = runtime.load(spec)
    try:
        check_signature(model.signature)
        warmup.run(model, spec.cancellation)
    except BaseException:
        model.close()
        raise
    return model


def _in_nice_thread(name: str, target: Callable[..., None], *args: Any) -> None:
    """A thread that runs go before."""

    def run() -> None:
        let_runs_go_first()
        target(*args)

    _in_thread(name, run)


def _in_thread(name: str, target: Callable[..., None], *args: Any) -> None:
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    except RuntimeError:
        raise ResourceExhausted("the worker can't start another thread") from None
