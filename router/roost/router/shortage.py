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
        accounts: Knows who maps the same files, and who uses which GPU.
        device_bytes: Of the GPU that the worker in ``place`` uses.
    """

    __slots__ = (
        "_device",
        "_device_at",
        "_files",
        "_kept",
        "_taken",
        "device_bytes",
        "mappings",
        "memory_bytes",
        "place",
        "private_bytes",
    )

    def __init__(
        self,
        private_bytes: int,
        memory_bytes: float,
        mappings: float,
        place: int | None,
        kept: Hashable,
        accounts: Accounts,
        device_bytes: int = 0,
    ) -> None:
        self.private_bytes = private_bytes
        self.memory_bytes = memory_bytes
        self.mappings = mappings
        self.place = place
        self._kept = kept
        self.device_bytes = device_bytes
        self._files = accounts.files
        self._device_at = accounts.device_at
        self._device = None if place is None else accounts.device_at.get(place)
        self._taken: dict[Hashable, int] | None = None

    @property
    def met(self) -> bool:
        """Whether nothing is missing any more."""
        if self.private_bytes > 0 or self.memory_bytes > 0:
            return False
        return self.mappings <= 0 and self.device_bytes <= 0

    def lessened_by(self, holding: Holding) -> bool:
        """Whether anything of what is still missing may come from a holding."""
        figures = holding.figures
        if self.private_bytes > 0 or self.memory_bytes > 0:
            if figures.private_bytes:
                return True
            if self.memory_bytes > 0 and figures.mapped_bytes:
                return True
        if self.device_bytes > 0 and figures.device_bytes and self._is_on_device(holding):
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
        if figures.device_bytes and self._is_on_device(holding):
            self.device_bytes -= sign * figures.device_bytes

    def _is_on_device(self, holding: Holding) -> bool:
        """Whether it is on the GPU that the load goes to, in whatever worker."""
        place = holding.place
        return self._device is not None and place is not None and self._device_at.get(place) is self._device

    def _count_file(self, name: Hashable, sign: int) -> None:
        """Its pages are free when the last one who maps it goes."""
        if self._taken is None:
            self._taken = {}
        file, before = self._files[name], self._taken.get(name, 0)
        self._taken[name] = before + sign
        if name != self._kept and file.staying == max(before, before + sign):
            self.memory_bytes -= sign * file.bytes
