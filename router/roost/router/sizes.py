"""Step 5, what an instance is accounted with: what was measured or declared, else an upper estimate from the files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from roost.core.figures import Figures
from roost.router.learned import Measured
from roost.router.revision import Revision
from roost.runtimes.prepared.cache import Copy
from roost.runtimes.prepared.forms import maps_copies
from roost.runtimes.prepared.manifest import Manifest

BASE_BYTES = 4 << 20
BYTES_PER_ARTIFACT_BYTE = 3
LEAST_BYTES = 80 << 10
"""What is measured of a tiny model is mostly noise; one session of ONNX Runtime takes about as much as this."""


@dataclass(frozen=True, slots=True)
class Size:
    """What an instance takes.

    Attributes:
        loading: The most that it takes while it is loaded.
        loaded: What it takes from then on.
    """

    loading: Figures
    loaded: Figures


def size_of(revision: Revision, copy: Copy | None = None) -> Size:
    """What an instance takes that is loaded from the files as they were last looked at, or from a prepared copy."""
    assert revision.artifact is not None
    declared_bytes, file_bytes = revision.description.policy.memory_bytes, revision.artifact.size_bytes
    if revision.on_gpu:
        return gpu_size(revision)
    if copy is None:
        return plain_size(declared_bytes, file_bytes, revision.measured)
    return copy_size(declared_bytes, file_bytes, copy.manifest, revision.measured_copy)


def gpu_size(revision: Revision) -> Size:
    """What an instance takes on a GPU and beside it: its weights pass through the host's memory, and leave there."""
    assert revision.artifact is not None
    policy, file_bytes = revision.description.policy, revision.artifact.size_bytes
    device_bytes, measured = policy.gpu_memory_bytes, revision.measured_on_gpu
    if measured is not None:
        device_bytes = max(device_bytes or 0, measured.figures.device_bytes)
    elif device_bytes is None:
        device_bytes = estimated_bytes(file_bytes)
    size = plain_size(policy.memory_bytes, file_bytes, revision.measured if revision.is_code else None)
    loaded = size.loaded
    if policy.memory_bytes is None and not revision.is_code:
        loaded = replace(loaded, private_bytes=BASE_BYTES + file_bytes)
    return Size(replace(size.loading, device_bytes=device_bytes), replace(loaded, device_bytes=device_bytes))


def file_of(revision: Revision, copy: Copy | None) -> str:
    """Names the file that an instance maps, if it maps any."""
    assert revision.artifact is not None
    return revision.artifact.path if copy is None else copy.key


def plain_size(declared_bytes: int | None, file_bytes: int, measured: Measured | None) -> Size:
    """What an instance takes that is loaded from the model's own files.

    Args:
        declared_bytes: What the model's owner says.
        file_bytes: All the model's files.
        measured: What was found out, if anything was.
    """
    if measured is not None:
        return _known(declared_bytes, measured.figures, measured.peak_bytes)
    figures = Figures(estimated_bytes(file_bytes) if declared_bytes is None else declared_bytes)
    return Size(figures, figures)


def copy_size(declared_bytes: int | None, file_bytes: int, manifest: Manifest, more: Measured | None) -> Size:
    """What an instance takes that is loaded from a prepared copy.

    Args:
        declared_bytes: What the model's owner says.
        file_bytes: All the model's own files.
        manifest: What is known of the copy.
        more: What was found out since it was made, if anything was.
    """
    first, mapped_bytes = manifest.copy, manifest.size_bytes if maps_copies(manifest.backend) else 0
    private_bytes = peak_bytes = mappings = 0
    if first is not None:
        private_bytes, peak_bytes, mappings = first.private_bytes, first.peak_bytes, first.mappings
    if more is not None:
        private_bytes = max(private_bytes, more.figures.private_bytes)
        peak_bytes = max(peak_bytes, more.peak_bytes)
        mappings = max(mappings, more.figures.mappings)
    if first is None and more is None:
        private_bytes = estimated_bytes(file_bytes) if declared_bytes is None else declared_bytes
    return _known(declared_bytes, Figures(private_bytes, mapped_bytes, mappings), peak_bytes)


def estimated_bytes(file_bytes: int) -> int:
    """Private memory of a model of which only the size of its files is known: more than it will take."""
    return BASE_BYTES + BYTES_PER_ARTIFACT_BYTE * file_bytes


def accounted(figures: Figures, declared_bytes: int | None) -> Figures:
    """What was measured, but no less than the model's owner says, and not nothing."""
    return replace(figures, private_bytes=max(figures.private_bytes, declared_bytes or 0, LEAST_BYTES))


def _known(declared_bytes: int | None, figures: Figures, peak_bytes: int) -> Size:
    loaded = accounted(figures, declared_bytes)
    return Size(replace(loaded, private_bytes=max(loaded.private_bytes, peak_bytes)), loaded)
