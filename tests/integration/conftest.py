from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Load tests are tested too, and are in no package that pytest makes importable.
sys.path.append(str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder
