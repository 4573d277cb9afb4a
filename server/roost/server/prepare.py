"""``roost prepare``: makes prepared copies of the models of repositories, so that no server has to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from roost.core.errors import RoostError
from roost.core.units import format_bytes
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
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig, read_command

_HELP = """usage: roost prepare [MODEL ...] [FLAGS OF roost serve]

Make prepared copies of models, which load faster and take less memory, where they do:
of the named ones, or of all in the repositories, as a server with these flags would.

flags:
  --help    show this help; 'roost serve --help' shows the other flags

The exit code is 1 if a copy that could be made was not, else 0.
"""
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
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_HELP)
        return 0
    wanted = tuple(takewhile(lambda arg: not arg.startswith("-"), argv))
    config = read_command(argv[len(wanted) :], os.environ if environ is None else environ).config
    cache = _open(config)
    repositories = [LocalRepository(path, config.model_format) for path in config.model_repositories]
    names = _names(wanted, repositories)
    memory_bytes = config.machine.memory_bytes // _SHARE_OF_MEMORY
    failures = 0
    for repository in repositories:
        allow_code = repository.path in config.code_repositories
        for name in repository.scan():
            if not names or name in names:
                failures += _prepare_model(cache, repository, name, memory_bytes, allow_code=allow_code)
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


def _open(config: ServeConfig) -> CopyCache:
    if not config.cache_bytes:
        raise ConfigError("--cache-size: 0 leaves no room for prepared copies")
    try:
        return CopyCache(config.cache_dir.absolute(), config.cache_bytes)
    except OSError as error:
        raise ConfigError(f"--cache-dir: {config.cache_dir} can't be used: {error.strerror}") from None


def _names(given: Sequence[str], repositories: Sequence[LocalRepository]) -> frozenset[str]:
    known = {name for repository in repositories for name in repository.scan()}
    for name in given:
        if name not in known:
            raise ConfigError(f"model '{name}' is in no repository")
    return frozenset(given)
