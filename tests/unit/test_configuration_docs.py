"""``docs/configuration.md`` says what the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.server.config_docs import configuration_page, main
from roost.server.layers import extra_of
from roost.server.settings import Settings

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == configuration_page()


def test_every_setting_is_described_in_sentences() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert extra_of(field)["hidden"] == (f"`{name}`" not in configuration_page()), name


def test_check_and_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert main(["--chek"]) == 2
