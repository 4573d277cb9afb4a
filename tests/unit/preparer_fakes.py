"""A preparer without a process, for tests of what it is given to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from roost.router.preparer import PreparerFailed

Job: TypeAlias = dict[str, Any]


@dataclass(eq=False)
class FakeProcess:
    """A preparer that answers at once, or, where the answer is None, not before it is killed."""

    pid: int
    answer: Callable[[Job], Any]
    jobs: list[Job]
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, job: Any) -> Any:
        self.jobs.append(dict(job))
        answer = self.answer(dict(job))
        if answer is None:
            await self.ended.wait()
            raise PreparerFailed
        return answer

    def kill(self) -> None:
        self.ended.set()

    def finish(self) -> None:
        self.ended.set()

    async def wait(self) -> int:
        await self.ended.wait()
        return 0
