"""Step 5, what a device holds: whether something fits beside what is taken, where, and whether it ever can."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from roost.core.figures import Figures
from roost.router.accounts import Accounts, Holding
from roost.router.plans import Figure, Limits, Refuse

LEAST_OF_LARGEST = 1 / 8


@dataclass(eq=False, slots=True)
class Capacity:
    """See the module.

    Attributes:
        limits: What may be taken.
        taken: What is.
    """

    limits: Limits
    taken: Accounts

    def has_room(self, need: Figures, file: Hashable, place: int | None) -> bool:
        """Whether so much more keeps to all limits."""
        limits, taken = self.limits, self.taken
        private_bytes = need.private_bytes + taken.private_bytes
        mapped_bytes = taken.mapped_bytes + (0 if file in taken.files else need.mapped_bytes)
        if private_bytes > limits.private_bytes or private_bytes + mapped_bytes > limits.memory_bytes:
            return False
        return place is None or self._has_place(need, place, after_leaving=False)

    def refusal(self, need: Figures, file: Hashable, places: Sequence[int], fitting: Sequence[int]) -> Refuse | None:
        """Why something can never fit, if so.

        Args:
            need: What it takes.
            file: What it maps.
            places: Workers that it may go to.
            fitting: Those of them that are ``never_full``.
        """
        limits, taken = self.limits, self.taken
        available: float = limits.private_bytes - taken.pinned_bytes
        if need.private_bytes > available:
            return Refuse(available)
        shared = taken.files.get(file)
        mapped_bytes = 0 if shared is not None and shared.pinned else need.mapped_bytes
        available = limits.memory_bytes - taken.pinned_bytes - taken.pinned_mapped_bytes
        if need.private_bytes + mapped_bytes > available:
            return Refuse(available, Figure.MEMORY)
        if places and not fitting:
            devices = [device for place in places if (device := taken.device_at.get(place)) is not None]
            most = max((device.limit_bytes - device.pinned_bytes for device in devices), default=need.device_bytes)
            if need.device_bytes > most:
                return Refuse(most, Figure.DEVICE)
            most_mappings = max(limits.mappings - taken.process(place).pinned_mappings for place in places)
            return Refuse(most_mappings, Figure.MAPPINGS)
        return None

    def never_full(self, need: Figures, places: Sequence[int]) -> list[int]:
        """The workers in which what is pinned leaves as many mappings, and on whose device as much memory."""
        limit, process = self.limits.mappings, self.taken.process
        found = [place for place in places if need.mappings <= limit - process(place).pinned_mappings]
        if devices := self.taken.device_at:
            found = [
                place
                for place in found
                if (device := devices.get(place)) is None
                or need.device_bytes <= device.limit_bytes - device.pinned_bytes
            ]
        return found

    def lacking(self, mappings: int, place: int, *, after_leaving: bool) -> float:
        """How many mappings a worker's process has too few."""
        process = self.taken.process(place)
        leaving = process.leaving_mappings if after_leaving else 0
        return mappings + process.mappings - leaving - self.limits.mappings

    def lacking_bytes(self, size_bytes: int, place: int, *, after_leaving: bool) -> int:
        """How much memory a worker's GPU has too little; nothing if it has none."""
        device = self.taken.device_at.get(place)
        if device is None:
            return 0
        leaving_bytes = device.leaving_bytes if after_leaving else 0
        return size_bytes + device.bytes - leaving_bytes - device.limit_bytes

    def first_with(self, need: Figures, places: Sequence[int], *, after_leaving: bool = False) -> int | None:
        """The first worker whose process may have so many more mappings, and whose device has the memory."""
        for place in places:
            if self._has_place(need, place, after_leaving=after_leaving):
                return place
        return None

    def _has_place(self, need: Figures, place: int, *, after_leaving: bool) -> bool:
        return self.lacking(need.mappings, place, after_leaving=after_leaving) <= 0 and (
            not self.taken.device_at or self.lacking_bytes(need.device_bytes, place, after_leaving=after_leaving) <= 0
        )

    def share_bytes(self, holding: Holding) -> int:
        """What policies are told: the share that it takes of the limit that is nearest, in bytes of the first one.

        But no less than a part of its largest share, since another limit may be the nearest one day.
        """
        limits, taken, figures = self.limits, self.taken, holding.figures
        budget_bytes = max(1, limits.private_bytes)
        memory_bytes = figures.private_bytes + figures.mapped_bytes
        shares = [
            (taken.private_bytes / budget_bytes, figures.private_bytes / budget_bytes),
            ((taken.private_bytes + taken.mapped_bytes) / limits.memory_bytes, memory_bytes / limits.memory_bytes),
        ]
        if holding.place is not None:
            in_process = taken.process(holding.place).mappings
            shares.append((in_process / limits.mappings, figures.mappings / limits.mappings))
            if (device := taken.device_at.get(holding.place)) is not None:
                limit_bytes = max(1, device.limit_bytes)
                shares.append((device.bytes / limit_bytes, figures.device_bytes / limit_bytes))
        nearest = max(shares)[1]
        largest = max(share for _, share in shares)
        return round(budget_bytes * max(nearest, largest * LEAST_OF_LARGEST))
