"""Step 5 of the data path, towards the worker: what it is told to load and to unload, and how long that may take."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from roost.core.errors import Cancelled, RoostError, Unavailable
from roost.core.frames import FrameType
from roost.core.tensors import Signature
from roost.registry_client.warmup import warmup_runs
from roost.router.ends import End
from roost.router.link import LinkLost
from roost.router.loads import Load
from roost.router.revision import Instance
from roost.router.states import InstanceState

log = logging.getLogger(__name__)

UNLOAD_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 2.0
"""So long a load that was given up may take to end before its worker is ended."""


class WorkerEnded(Unavailable):
    """The worker did not live to see the end of the load; what it held is free when it is reaped."""


class WorkerLost(WorkerEnded):
    """The worker was lost for a reason of its own; another may do the load.

    Args:
        message: What happened, as far as it is known yet.
        reaped: Gets why, once its process has ended.
    """

    def __init__(self, message: str, reaped: asyncio.Future[End]) -> None:
        super().__init__(message)
        self._reaped = reaped

    async def suspects(self) -> bool:
        """Whether what it loaded may have been the reason, which is known once its process has ended."""
        return (await asyncio.shield(self._reaped)).suspects


class NoWorkerCame(Unavailable):
    """The load did not begin, as no worker was up; that is no fault of the model's."""


class LoadTimedOut(Unavailable):
    """The load took too long and was given up; the worker is as it was."""


async def create(instance: Instance, load: Load, timeout_s: float, *, may_be_given_up: bool = True) -> Signature:
    """Has the worker load an instance; returns what the model says of itself.

    Args:
        instance: What is to be loaded, and where.
        load: What it is for.
        timeout_s: After so long the worker is told to give it up, and ended if it does not.
        may_be_given_up: Whether ``load`` gets the means to have it given up before.

    Raises:
        WorkerEnded: If the worker did not live to see the end of it, or had to be ended.
        LoadTimedOut: If it was given up after ``timeout_s``.
        Cancelled: If it was given up before.
        RoostError: If the runtime can't load it.
    """
    revision, worker = instance.revision, instance.worker
    link, reaped = worker.link, worker.reaped
    assert link is not None
    assert reaped is not None
    number = link.next_number()
    if may_be_given_up:
        load.cancel = partial(link.send_cancel, number)
    late = asyncio.get_running_loop().call_later(timeout_s, link.send_cancel, number)
    late_at = time.monotonic() + timeout_s
    try:
        async with asyncio.timeout(timeout_s + CANCEL_TIMEOUT_S):
            reply = await link.call(FrameType.LOAD, _load_payload(instance), number=number)
    except TimeoutError:  # what a runtime holds that can't be interrupted comes back with its process only
        log.error("%s did not load within %g s: worker %d is ended", revision.key, timeout_s, worker.id)
        worker.kill(End.GIVEN_UP, revision)
        raise WorkerEnded(f"it did not load within {timeout_s:g} s") from None
    except LinkLost as error:
        raise WorkerLost(f"its worker was lost while loading: {error.message}", reaped) from None
    except Cancelled:
        if time.monotonic() < late_at:
            raise
        raise LoadTimedOut(f"it did not load within {timeout_s:g} s") from None
    finally:
        late.cancel()
        load.cancel = None
    if instance.state is InstanceState.GONE:
        raise WorkerLost("its worker was lost just after loading", reaped)
    instance.own_bytes = int(reply.get("instance_bytes", 0))
    return Signature.from_json(reply["signature"])


def _load_payload(instance: Instance) -> dict[str, Any]:
    revision, copy = instance.revision, instance.copy
    description, artifact = revision.description, revision.artifact
    assert artifact is not None
    payload = {
        "instance": instance.id,
        "backend": description.backend,
        "path": artifact.path if copy is None else copy.path,
        "root": artifact.root if copy is None else copy.root,
        "prepared": copy is not None,
        "options": revision.load_options(),
    }
    if description.policy.threads is not None:
        payload["threads"] = description.policy.threads
    if description.config.model_warmup:
        payload["warmup"] = warmup_runs(description.config)
        payload["warmup_folder"] = str(revision.folder.path)
    return payload


async def unload(instance: Instance) -> bool:
    """Has the worker unload an instance; returns whether its memory is free. A worker that fails to is ended."""
    error = await _call_unload(instance)
    if error is not None and not isinstance(error, WorkerEnded) and instance.state is not InstanceState.GONE:
        log.error("worker %d could not unload %s: %s", instance.worker.id, instance.revision.key, error)
        instance.worker.kill()
    return error is None


async def discard(instance: Instance) -> bool:
    """The same for an instance that loaded but can't be used, or did not load at all, so that nothing is there."""
    error = await _call_unload(instance)
    if error is not None:
        log.debug("nothing to unload: %s", error)
    return not isinstance(error, WorkerEnded)


async def _call_unload(instance: Instance) -> RoostError | None:
    """The call, and why it failed; a worker that does not answer it is ended, since loads and memory wait for it."""
    worker = instance.worker
    if worker.link is None:
        return WorkerEnded("the worker is gone")
    try:
        async with asyncio.timeout(UNLOAD_TIMEOUT_S):
            await worker.link.call(FrameType.UNLOAD, {"instance": instance.id})
    except TimeoutError:
        log.error("worker %d did not unload %s: it is ended", worker.id, instance.revision.key)
        worker.kill()
        return WorkerEnded(f"it did not unload within {UNLOAD_TIMEOUT_S:g} s")
    except RoostError as error:
        return error
    return None
