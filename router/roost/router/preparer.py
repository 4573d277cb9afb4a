"""The process that finds things out about models in the background; see ``roost.runtimes.preparer`` for its own end.

It does one job at a time, and whatever happens to it is what came of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from roost.core.tasks import in_background
from roost.router.process import CHILD_ENVIRONMENT
from roost.router.process_watch import Watch

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 1 << 20
_END_TIMEOUT_S = 5.0
_LAST_TIMEOUT_S = 1.0
"""So long the processes that it has started may outlive it."""

_PAUSE_S = 0.05

Job: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Mapping[str, Any]


class PreparerFailed(Exception):
    """The preparer's process ended or was ended before it had an answer; the text says how."""


@dataclass(frozen=True, slots=True)
class PreparerSpec:
    """How its process is started.

    Attributes:
        threads: How many threads a model may use in it.
        log_level: The least severe level of its log.
        log_format: How its log lines look.
    """

    threads: int = 1
    log_level: str = "info"
    log_format: str = "human"


class PreparerProcess(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number."""

    async def ask(self, job: Job) -> Answer:
        """Has it do a job.

        Raises:
            PreparerFailed: If it ends before it has an answer, or gives none that can be understood.
        """

    def kill(self) -> None:
        """Ends it at once; nothing happens if it has ended."""

    def finish(self) -> None:
        """Lets it end."""

    async def wait(self) -> int:
        """Waits for its end and returns its exit code, or ``-signal``."""


LaunchPreparer: TypeAlias = Callable[[PreparerSpec], Awaitable[PreparerProcess]]
"""Starts a process; OSError if the machine has none to give."""


class Preparer:
    """See the module. Only one task uses it.

    Args:
        spec: How its process is started.
        launch: Starts one.
    """

    def __init__(self, spec: PreparerSpec, launch: LaunchPreparer) -> None:
        self.spec = spec
        self._launch = launch
        self._process: PreparerProcess | None = None
        self._unwanted = False

    @property
    def pid(self) -> int:
        """The number of its process; 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    async def do(self, job: Job, timeout_s: float) -> Answer:
        """Has a job done, by a new process if there is none; one that fails is ended.

        Raises:
            PreparerFailed: If there is no answer in time, whatever the reason.
        """
        self._unwanted = False
        try:
            if self._process is None:
                self._process = await self._launch(self.spec)
                log.debug("the preparer is process %d", self._process.pid)
                if self._unwanted:
                    self._process.kill()
            async with asyncio.timeout(timeout_s):
                return await self._process.ask(job)
        except TimeoutError:  # an OSError, too
            await self.end(at_once=True)
            raise PreparerFailed(f"it had no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise PreparerFailed(f"it can't be started: {error.strerror}") from None
        except PreparerFailed as error:
            raise PreparerFailed(str(error) or _cause(await self.end(at_once=True))) from None

    async def end(self, *, at_once: bool = False) -> int:
        """Ends the process if there is one and returns its exit code; afterwards its memory is free."""
        process = self._process
        if process is None:
            return 0
        try:
            if at_once:
                process.kill()
            process.finish()
            try:
                async with asyncio.timeout(_END_TIMEOUT_S):
                    return await process.wait()
            except TimeoutError:
                process.kill()
                return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """Ends the process at once, whatever it does; whoever waits for its answer hears of it."""
        self._unwanted = True  # it may just be starting
        if self._process is not None:
            self._process.kill()


class _Launched:
    """A child process of this one, spoken to over its standard input and output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, job: Job) -> Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        number = next(self._numbers)
        async with in_background(self._end_if_stopped()):
            try:
                stdin.write(json.dumps({"id": number, **job}).encode() + b"\n")
                await stdin.drain()
                line = await stdout.readline()
                answer = json.loads(line) if line else None
            except (OSError, ValueError):
                answer = None
        if not isinstance(answer, dict) or answer.get("id") != number:
            raise PreparerFailed
        return answer

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    def finish(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def wait(self) -> int:
        code = await self._process.wait()
        # Those that it has started die with it, an instant later; their memory and files are in use until then.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_TIMEOUT_S):
                await self._until_alone()
        return code

    async def _end_if_stopped(self) -> None:
        """Ends it once it was stopped by a signal, or all that waits for it would wait for the job's timeout."""
        await Watch(self.pid).stopped()
        log.warning("the preparer was stopped by a signal: it is ended")
        self.kill()

    async def _until_alone(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while await stdout.read(_MAX_ANSWER_BYTES):
            pass


async def launch_preparer(spec: PreparerSpec) -> PreparerProcess:
    """Starts a child process; see ``LaunchPreparer``.

    Raises:
        OSError: If the machine has no process, descriptor or memory for it.
    """
    # There is work because a model was loaded, most often for a request, which goes first.
    await asyncio.sleep(_PAUSE_S)
    # -P: a module that lies in the working directory must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "roost.runtimes.preparer"]
    command += ["--log-level", spec.log_level, "--log-format", spec.log_format]
    threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MAX_ANSWER_BYTES,
        env={**os.environ, **CHILD_ENVIRONMENT, **threads},
    )
    return _Launched(process)


def _cause(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
