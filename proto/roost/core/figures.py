"""What an instance of a model takes, in the figures that are limited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """What one instance takes.

    Attributes:
        private_bytes: Memory of its own: anonymous and swapped out.
        mapped_bytes: Page cache of our files that it uses, which all who map the same file share.
        mappings: Entries in its process's table of mappings, of which the kernel allows so many.
        device_bytes: Memory of the GPU that its process uses; 0 on the CPU.
    """

    private_bytes: int
    mapped_bytes: int = 0
    mappings: int = 0
    device_bytes: int = 0
