"""Step 5, how much is missing for a load in each figure, and how much of that is there once others are gone."""

from __future__ import annotations

from collections.abc import Hashable

from roost.router.accounts import Accounts, Holding


class Shortage:
    """What has to be freed; what has enough is zero or below.

    Args:
        private_bytes: Of private memory.
        memory_bytes: Of private memory and mapped files together.
        mappings: Of the process in ``place``.
        place: The worker that the load goes to, if that matters.
        kept: A file that stays mapped whoever goes, since the load maps it too.
        accounts: Knows who maps the same files.
    """

    __slots__ = ("_files", "_kept", "_taken", "mappings", "memory_bytes", "place", "private_bytes")

    def __init__(
        self,
        private_bytes: int,
        memory_bytes: float,
        mappings: float,
        place: int | None,
        kept: Hashable,
        accounts: Accounts,
    ) -> None:
        self.private_bytes = private_bytes
        self.memory_bytes = memory_bytes
        self.mappings = mappings
        self.place = place
        self._kept = kept
        self._files = accounts.files
        self._taken: dict[Hashable, int] | None = None

    @property
    def met(self) -> bool:
        """Whether nothing is missing any more."""
        return self.private_bytes <= 0 and self.memory_bytes <= 0 and self.mappings <= 0

    def lessened_by(self, holding: Holding) -> bool:
        """Whether anything of what is still missing may come from a holding."""
        figures = holding.figures
        if self.private_bytes > 0 or self.memory_bytes > 0:
            if figures.private_bytes:
                return True
            if self.memory_bytes > 0 and figures.mapped_bytes:
                return True
        return self.mappings > 0 and holding.place == self.place and figures.mappings > 0

    def take(self, holding: Holding) -> None:
        """A holding is to go."""
        self._count(holding, 1)

    def give_back(self, holding: Holding) -> None:
        """A holding that was to go stays after all."""
        self._count(holding, -1)

    def _count(self, holding: Holding, sign: int) -> None:
        figures = holding.figures
        freed_bytes = sign * figures.private_bytes
        self.private_bytes -= freed_bytes
        self.memory_bytes -= freed_bytes
        if figures.mapped_bytes:
            self._count_file(holding.file, sign)
        if holding.place == self.place:
            self.mappings -= sign * figures.mappings

    def _count_file(self, name: Hashable, sign: int) -> None:
        """Its pages are free when the last one who maps it goes."""
        if self._taken is None:
            self._taken = {}
        file, before = self._files[name], self._taken.get(name, 0)
        self._taken[name] = before + sign
        if name != self._kept and file.staying == max(before, before + sign):
            self.memory_bytes -= sign * file.bytes
