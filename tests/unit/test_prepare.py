"""``roost prepare``: what is said of wrong arguments, before anything is made. What it makes is an integration test."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.server import cli
from roost.server.cache_defaults import DEFAULT_BYTES, default_cache_bytes, default_cache_dir


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no model repository: give at least one with --model-repository PATH"),
        (["--model-repository", "{}/missing"], "--model-repository: there is no such folder: "),
        (["--model-repository", "{}", "--cache-dir", "{}/cache", "--cache-size", "much"], "--cache-size: "),
        (["--model-repository", "{}", "--cache-dir", "/dev/null/cache"], "--cache-dir: /dev/null/cache can't be used"),
        (["--model-repository", "{}", "--cache-size", "0"], "--cache-size: 0 leaves no room for prepared copies"),
        (["nobody", "--model-repository", "{}", "--cache-dir", "{}/cache"], "model 'nobody' is in no repository"),
        (["--model-repositry", "{}"], "did you mean --model-repository?"),
    ],
)
def test_mistakes_are_told_in_one_line(
    repository: Path,
    flags: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ROOST_MODEL_REPOSITORY", raising=False)
    assert cli.main(["prepare", *(flag.format(repository) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_models_that_have_no_copies_are_passed_over(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "1" / "model.dummy").write_text("{}")
    cache = repository.parent / "cache"
    flags = ["--model-repository", str(repository), "--cache-dir", str(cache), "--cache-size", "1MiB"]
    assert cli.main(["prepare", *flags]) == 0
    assert capsys.readouterr().out == f"0 B of 1 MiB in {cache}\n"


def test_where_copies_are_by_default(tmp_path: Path) -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/roost")
    assert default_cache_dir({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}) == Path("/home/me/.cache/roost")
    assert 0 < default_cache_bytes(tmp_path / "not" / "there" / "yet") <= DEFAULT_BYTES
