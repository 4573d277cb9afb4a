"""Which prepared copy belongs to a model here, by the build of its runtime."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = b"a build of the runtime"
OTHER = b"any other build of it!"
PRINT_KEY = "from roost.runtimes.prepared.identity import copy_key; print(copy_key('d', 'onnxruntime', {}))"


def key_with(packages: Path, library: bytes, recorded: bytes | None, size: int | None = None) -> str:
    """The key of a model's copy where a runtime is installed whose library is this, and recorded as something else."""
    file = packages / "onnxruntime" / "capi" / "onnxruntime_pybind11_state.so"
    file.parent.mkdir(parents=True)
    file.write_bytes(library)
    (packages / "onnxruntime" / "__init__.py").write_text("")
    if recorded is not None:
        digest = base64.urlsafe_b64encode(hashlib.sha256(recorded).digest()).decode().rstrip("=")
        name = file.relative_to(packages).as_posix()
        record = packages / "onnxruntime-1.0.dist-info" / "RECORD"
        record.parent.mkdir()
        record.write_text(f"onnxruntime/__init__.py,,\n{name},sha256={digest},{size or len(recorded)}\n")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", PRINT_KEY]
    return subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout


@pytest.fixture(scope="module")
def key_of(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, str]:
    """The keys of builds whose libraries have to be read."""
    return {library: key_with(tmp_path_factory.mktemp("packages"), library, None) for library in (LIBRARY, OTHER)}


def test_each_build_has_its_own_key(key_of: dict[bytes, str]) -> None:
    assert key_of[LIBRARY] != key_of[OTHER]


@pytest.mark.parametrize(
    ("recorded", "size", "believed"),
    [
        (LIBRARY, None, LIBRARY),
        (OTHER, None, OTHER),  # it is not read: that would take long
        (OTHER, 1, LIBRARY),  # the library is another one by now
    ],
)
def test_the_installers_record_stands_for_the_library(
    tmp_path: Path, key_of: dict[bytes, str], recorded: bytes, size: int | None, believed: bytes
) -> None:
    assert len(LIBRARY) == len(OTHER)
    assert key_with(tmp_path, LIBRARY, recorded, size) == key_of[believed]
