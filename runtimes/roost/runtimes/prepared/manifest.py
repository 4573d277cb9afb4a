"""What the cache knows of one model: the files of its copy, or why it has none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What loading took in a fresh process, the least of several attempts.

    Attributes:
        load_s: Seconds of the processor until it was loaded.
        first_run_s: Seconds of the processor that the first run took; a copy's pages come in only then.
        private_bytes: Anonymous memory that it took, the first run included.
        peak_bytes: The most that it took while it was loaded, as far as it was seen.
        mappings: Mappings of the process that it took.
    """

    load_s: float
    first_run_s: float
    private_bytes: int
    peak_bytes: int
    mappings: int

    @property
    def ready_s(self) -> float:
        """Seconds of the processor until the first answer."""
        return self.load_s + self.first_run_s


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a copy."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """See the module.

    Attributes:
        digest: The digest of the model's own files.
        backend: Its runtime.
        reason: Why there is no copy; empty if there is one.
        entry: The file of the copy that the runtime is given.
        files: All its files by name.
        plain: What loading the model itself took.
        copy: What loading the copy took.
    """

    digest: str
    backend: str
    reason: str = ""
    entry: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    plain: Measured | None = None
    copy: Measured | None = None

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(file.size_bytes for file in self.files.values())

    def dump(self) -> bytes:
        """As it is written, with a checksum of its own."""
        body = asdict(self)
        return json.dumps({"sha256": _checksum(body), "manifest": body}, indent=1, sort_keys=True).encode()


def parse_manifest(data: bytes) -> Manifest:
    """Reads what ``dump`` wrote.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    try:
        value = json.loads(data)
        body = value["manifest"]
        if value["sha256"] != _checksum(body):
            raise ValueError("the manifest is damaged")
        files = {str(name): FileRecord(**record) for name, record in body.pop("files").items()}
        plain, copy = (Measured(**found) if (found := body.pop(name)) else None for name in ("plain", "copy"))
        return Manifest(files=files, plain=plain, copy=copy, **body)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("the manifest is damaged") from None


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
