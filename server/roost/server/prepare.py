"""``roost prepare``: makes prepared copies of the models of repositories, so that no server has to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.core.errors import RoostError
from roost.core.units import format_bytes, parse_bytes
from roost.registry_client.load_options import load_options
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.registry_client.repository import LocalRepository
from roost.router.prepared import order_of
from roost.runtimes.prepared.cache import CopyCache
from roost.runtimes.prepared.forms import FORMS, has_copies
from roost.runtimes.prepared.identity import can_prepare
from roost.runtimes.prepared.making import NotNow, make_copy
from roost.runtimes.prepared.manifest import Manifest
from roost.server.arguments import ConfigError, Parser
from roost.server.cache_defaults import DEFAULT_BYTES, default_cache_bytes, default_cache_dir
from roost.server.machine import read_machine

_SHARE_OF_MEMORY = 2


@dataclass(frozen=True, slots=True)
class _Version:
    folder: ModelFolder
    description: ModelDescription
    number: str
    allow_code: bool


class _Digests:
    """A digest cache for one run: every file is read once anyway."""

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """Nothing is remembered."""

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """Nothing is remembered."""


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost prepare``; 1 if a copy that could be made was not.

    Raises:
        ConfigError: If an argument is wrong.
        SystemExit: After printing the help, if it is asked for.
    """
    environ = os.environ if environ is None else environ
    values = _parser().parse_all(argv)
    repositories = _repositories(values.model_repository, environ)
    folder = values.cache_dir or environ.get("ROOST_CACHE_DIR")
    cache = _open(folder, values.cache_size or environ.get("ROOST_CACHE_SIZE") or "auto", environ)
    names = _names(values.model, repositories)
    failures = 0
    for repository in repositories:
        for name in repository.scan():
            if not names or name in names:
                memory_bytes = read_machine().memory_bytes // _SHARE_OF_MEMORY
                failures += _prepare_model(cache, repository, name, memory_bytes, allow_code=values.allow_code)
    sys.stdout.write(f"{format_bytes(cache.used_bytes())} of {format_bytes(cache.limit_bytes)} in {cache.folder}\n")
    return 1 if failures else 0


def _prepare_model(
    cache: CopyCache, repository: LocalRepository, name: str, memory_bytes: int, *, allow_code: bool
) -> int:
    """Makes the copies of a model's versions; returns how many there should be but are not."""
    failures = 0
    try:
        for version in _versions(repository.open_model(name), allow_code=allow_code):
            started = time.monotonic()
            try:
                text = _shown(_prepare(cache, version, memory_bytes))
            except NotNow as error:
                failures += 1
                text = f"failed: {error}"
            sys.stdout.write(f"{name} {version.number}: {text} ({time.monotonic() - started:.1f} s)\n")
            sys.stdout.flush()
    except RoostError as error:
        sys.stdout.write(f"{name}: failed: {error.message}\n")
        failures += 1
    return failures


def _versions(folder: ModelFolder, *, allow_code: bool) -> Iterator[_Version]:
    """The versions of a model that there can be copies of."""
    description = folder.load_config()
    if not can_prepare(description.backend):
        return
    for number in folder.versions_of(description):
        path, _ = folder.find(number, description)
        if has_copies(description.backend, path, description.options):
            yield _Version(folder, description, number, allow_code)


def _prepare(cache: CopyCache, version: _Version, memory_bytes: int) -> Manifest:
    description = version.description
    artifact = version.folder.artifact(version.number, description, _Digests())
    options = load_options(description, version.number, allow_code=version.allow_code)
    memory_bytes += FORMS[description.backend].reserved_bytes
    order = order_of(version.folder, description, artifact, threads=1, memory_bytes=memory_bytes, options=options)
    return make_copy(cache, order)


def _shown(manifest: Manifest) -> str:
    if manifest.reason or manifest.plain is None or manifest.copy is None:
        return f"no copy: {manifest.reason}"
    plain, copy = manifest.plain, manifest.copy
    return (
        f"prepared, {format_bytes(manifest.size_bytes)}: "
        f"load {plain.load_s * 1e3:.0f} ms -> {copy.load_s * 1e3:.0f} ms, "
        f"memory {format_bytes(plain.private_bytes)} -> {format_bytes(copy.private_bytes)}"
    )


def _repositories(given: Sequence[str], environ: Mapping[str, str]) -> list[LocalRepository]:
    paths = list(given) or [path for path in environ.get("ROOST_MODEL_REPOSITORY", "").split(":") if path]
    if not paths:
        raise ConfigError("at least one --model-repository is needed")
    try:
        return [LocalRepository(Path(path)) for path in paths]
    except RoostError as error:
        raise ConfigError(f"--model-repository: {error.message}") from None


def _open(folder: str | None, size: str, environ: Mapping[str, str]) -> CopyCache:
    path = Path(folder).absolute() if folder else default_cache_dir(environ)
    try:
        limit_bytes = default_cache_bytes(path) if size == "auto" else parse_bytes(size)
        return CopyCache(path, limit_bytes)
    except ValueError as error:
        raise ConfigError(f"--cache-size: {error}") from None
    except OSError as error:
        raise ConfigError(f"--cache-dir: {path} can't be used: {error.strerror}") from None


def _names(given: Sequence[str], repositories: Sequence[LocalRepository]) -> frozenset[str]:
    known = {name for repository in repositories for name in repository.scan()}
    for name in given:
        if name not in known:
            raise ConfigError(f"model '{name}' is in no repository")
    return frozenset(given)


def _parser() -> Parser:
    parser = Parser(
        prog="roost prepare",
        description="Make prepared copies of models, which load faster and take less memory, where they do.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", nargs="*", help="Models to prepare. Default: all.")
    parser.add_argument(
        "--model-repository",
        metavar="PATH",
        action="append",
        default=[],
        help="Folder that holds the models, as for roost serve. Default: ROOST_MODEL_REPOSITORY.",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="Models may bring code, as for roost serve: .keras files, pickles. They are loaded for this.",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="Folder for the copies. Default: ROOST_CACHE_DIR, else $XDG_CACHE_HOME/roost, else ~/.cache/roost.",
    )
    parser.add_argument(
        "--cache-size",
        metavar="SIZE",
        help="What all copies may take; those used longest ago go first. Default: ROOST_CACHE_SIZE, else a tenth of "
        f"the file system, at most {format_bytes(DEFAULT_BYTES)}.",
    )
    return parser
