"""A report as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roost.core.units import format_bytes
from roost.server.inspection.report import MemoryReport, Report, TensorReport, VersionReport

_SOURCES = {
    "configuration": "as its configuration says",
    "file": "as the file says",
    "load": "as it says when it is loaded",
}
_BATCHES = {"config": ", as its configuration says", "on": ", as its owner says"}
_WIDTH = 10
_MAX_CHARACTERS = 2000


def lines_of(report: Report) -> Iterator[str]:
    """The lines."""
    yield _line("model", report.model + (f", with {report.config}" if report.config else ""))
    if report.runtime:
        framework = f" ({report.framework})" if report.framework else ""
        yield _line("runtime", f"{report.runtime}{framework}: {report.reason}")
    yield from _remarks(report.problems, report.notes)
    for version in report.versions:
        yield ""
        yield from _version(version)
    if report.unserved:
        yield ""
        yield f"not served: version {', '.join(report.unserved)}"
    yield ""
    yield "ready to be served" if report.is_ready else "not ready to be served as it is"


def _version(version: VersionReport) -> Iterator[str]:
    yield f"version {version.version}"
    if version.file:
        more = f" in {version.files:,} files" if version.files > 1 else ""
        yield _line("file", f"{version.file}, {format_bytes(version.file_bytes)}{more}")
    if version.what:
        yield _line("what", version.what)
    yield from _tensors(version)
    if version.memory is not None:
        yield _line("memory", _memory(version.memory))
    if version.load_s is not None:
        yield _line("load", f"{version.load_s * 1e3:,.0f} ms")
    if version.batching:
        yield _line("batches", _batches(version))
    yield from _remarks(version.problems, version.notes)


def _tensors(version: VersionReport) -> Iterator[str]:
    if not version.inputs and not version.outputs:
        if version.file:
            yield _line("inputs", "not known before it is loaded (--load)")
        return
    width = max(len(tensor.name) for tensor in (*version.inputs, *version.outputs))
    for label, tensors in (("input", version.inputs), ("output", version.outputs)):
        for tensor in tensors:
            yield _line(label, _tensor(tensor, width))
    yield _line("", _SOURCES.get(version.tensors_from, ""))


def _tensor(tensor: TensorReport, width: int) -> str:
    shape = ", ".join("?" if dim < 0 else str(dim) for dim in tensor.shape)
    optional = ", optional" if tensor.optional else ""
    return f"{tensor.name:<{width}}  {tensor.datatype:<6} [{shape}]{optional}"


def _batches(version: VersionReport) -> str:
    text = _BATCHES.get(version.batching, version.batching)
    return f"up to {version.batch_rows} rows{text}" if version.batching in _BATCHES and version.batch_rows else text


def _memory(memory: MemoryReport) -> str:
    text = format_bytes(memory.private_bytes)
    if memory.source == "estimated":
        text = f"at most {text}, estimated from its files until it is loaded and measured"
    else:
        text = f"{text}, {memory.source}"
    if memory.mapped_bytes:
        text += f"; and files of {format_bytes(memory.mapped_bytes)}"
    if memory.prepared:
        text += "; loaded from its prepared copy"
    if memory.run_bytes:
        text += f"; a full batch takes {format_bytes(memory.run_bytes)} besides while it runs"
    return text


def _remarks(problems: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    for label, texts in (("PROBLEM", problems), ("NOTE", notes)):
        for text in texts:
            yield _line(label, text)


def _line(label: str, text: str) -> str:
    """A line without what a file may have in its names to play tricks on terminals."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:_MAX_CHARACTERS])
    return f"{label:<{_WIDTH}}{shown}".rstrip()
