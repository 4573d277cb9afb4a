"""Step 5, what is taken of a device: every holding, and sums over them that cost the same however many there are.

Files are counted once, however many instances map them: the kernel keeps one copy of their pages for all processes.
Mappings are counted for each process, since the kernel limits them so; memory of a GPU for all processes that use it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto

from roost.core.figures import Figures
from roost.router.eviction import Owner

MIN_PROTECTION_S = 1.0


class Phase(Enum):
    """What a holding's memory is for."""

    RESERVED = auto()  # a load is under way
    RESIDENT = auto()  # may be leased, and chosen to go
    LEAVING = auto()  # chosen to go, not gone yet


RESERVED, RESIDENT, LEAVING = Phase  # members are slow to look up


@dataclass(slots=True)
class Holding:
    """What one instance has of the device.

    Attributes:
        owner: Its revision.
        figures: What is accounted for it.
        file: Names the file that its mapped bytes are of; who maps the same file has the same name.
        place: The worker whose process it is in; None if it is in none that has a limit.
        pinned: Never evicted.
        priority: Among idle ones those with a lower one go first.
        phase: What the memory is for now.
        leases: Batches that run on it, and sequences that it knows.
        held: How many of them are sequences: it does not go before they have ended, unless it yields.
        yields: What is loaded now is to take its place.
        last_used: When it was last leased or given back; minus infinity if never.
        protection_s: How long continuous use protects it.
        busy_since: Since when it is claimed or leased without a pause; infinity while it is idle.
    """

    owner: Owner
    figures: Figures
    file: Hashable = None
    place: int | None = None
    pinned: bool = False
    priority: int = 0
    phase: Phase = RESERVED
    leases: int = 0
    held: int = 0
    yields: bool = False
    last_used: float = -math.inf
    protection_s: float = MIN_PROTECTION_S
    busy_since: float = math.inf

    def protected_until(self) -> float:
        """When claims stop protecting it; minus infinity if nothing claims or leases it."""
        return -math.inf if self.busy_since == math.inf else self.busy_since + self.protection_s


@dataclass(slots=True)
class File:
    """A file that is mapped: how many holdings map it, how many of those stay, and how many are pinned."""

    bytes: int = 0
    holders: int = 0
    staying: int = 0
    pinned: int = 0


@dataclass(slots=True)
class Process:
    """What instances take in one worker's process; a file counts there for each instance that maps it."""

    private_bytes: int = 0
    mapped_bytes: int = 0
    mappings: int = 0
    leaving_mappings: int = 0
    pinned_mappings: int = 0


@dataclass(slots=True)
class DeviceAccount:
    """What instances take of a GPU's memory, and may take; the others are parts of ``bytes``.

    ``moving`` is how many loads and unloads are under way there.
    """

    limit_bytes: int = 0
    bytes: int = 0
    reserved_bytes: int = 0
    leaving_bytes: int = 0
    pinned_bytes: int = 0
    moving: int = 0


class Accounts:
    """See the module.

    Attributes:
        private_bytes: Of all holdings; the following ones are parts of it.
        reserved_bytes: Of loads under way.
        leaving_bytes: Of what was chosen to go.
        pinned_bytes: Of what never goes.
        mapped_bytes: Of all files that are mapped; the following ones are parts of it.
        leaving_mapped_bytes: Of files that nobody maps any more once all is gone that was chosen to go.
        pinned_mapped_bytes: Of files that something pinned maps.
        moving: How many loads and unloads are under way.
        files: Files that are mapped.
        processes: Of workers that have, or had, instances.
        devices: The GPUs.
        device_at: Which of them the workers use that use one.
    """

    def __init__(self) -> None:
        self.private_bytes = self.reserved_bytes = self.leaving_bytes = self.pinned_bytes = 0
        self.mapped_bytes = self.leaving_mapped_bytes = self.pinned_mapped_bytes = 0
        self.moving = 0
        self.files: dict[Hashable, File] = {}
        self.processes: dict[int, Process] = {}
        self.devices: dict[str, DeviceAccount] = {}
        self.device_at: dict[int, DeviceAccount] = {}

    def add(self, holding: Holding) -> None:
        """Counts a holding. Whatever changes in one is changed between ``remove`` and ``add``."""
        self._count(holding, 1)

    def remove(self, holding: Holding) -> None:
        """Counts a holding no more."""
        self._count(holding, -1)

    def process(self, place: int) -> Process:
        """What a worker's process has."""
        process = self.processes.get(place)
        if process is None:
            process = self.processes[place] = Process()
        return process

    def _count(self, holding: Holding, sign: int) -> None:
        figures = holding.figures
        private_bytes = sign * figures.private_bytes
        self.private_bytes += private_bytes
        if holding.phase is LEAVING:
            self.leaving_bytes += private_bytes
            self.moving += sign
        elif holding.phase is RESERVED:
            self.reserved_bytes += private_bytes
            self.moving += sign
        if holding.pinned:
            self.pinned_bytes += private_bytes
        if figures.mapped_bytes:
            self._count_file(holding, sign)
        if holding.place is not None:
            self._count_process(self.process(holding.place), holding, sign)
            if self.device_at and (device := self.device_at.get(holding.place)) is not None:
                self._count_device(device, holding, sign)

    def _count_file(self, holding: Holding, sign: int) -> None:
        file = self.files.get(holding.file)
        if file is None:
            file = self.files[holding.file] = File()
        self._sum(file, -1)
        if sign > 0:
            file.bytes = holding.figures.mapped_bytes  # what was found out last holds for all
        file.holders += sign
        file.staying += sign * (holding.phase is not LEAVING)
        file.pinned += sign * holding.pinned
        self._sum(file, 1)
        if not file.holders:
            del self.files[holding.file]

    def _sum(self, file: File, sign: int) -> None:
        if not file.holders:
            return
        size_bytes = sign * file.bytes
        self.mapped_bytes += size_bytes
        if not file.staying:
            self.leaving_mapped_bytes += size_bytes
        if file.pinned:
            self.pinned_mapped_bytes += size_bytes

    @staticmethod
    def _count_process(process: Process, holding: Holding, sign: int) -> None:
        figures = holding.figures
        mappings = sign * figures.mappings
        process.private_bytes += sign * figures.private_bytes
        process.mapped_bytes += sign * figures.mapped_bytes
        process.mappings += mappings
        if holding.phase is LEAVING:
            process.leaving_mappings += mappings
        if holding.pinned:
            process.pinned_mappings += mappings

    @staticmethod
    def _count_device(device: DeviceAccount, holding: Holding, sign: int) -> None:
        size_bytes = sign * holding.figures.device_bytes
        device.bytes += size_bytes
        if holding.phase is LEAVING:
            device.leaving_bytes += size_bytes
            device.moving += sign
        elif holding.phase is RESERVED:
            device.reserved_bytes += size_bytes
            device.moving += sign
        if holding.pinned:
            device.pinned_bytes += size_bytes
