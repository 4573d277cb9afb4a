"""Puts together what there is to say of a model: what configuration and files say, what is known, what a load says."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from roost.core.errors import InvalidArgument, RoostError
from roost.core.names import is_name
from roost.registry_client.backends import (
    BACKENDS,
    backend_of_file,
    backend_of_format,
    known_backends,
)
from roost.registry_client.digest import FileStamp, stamp_files
from roost.registry_client.files import open_regular, shown
from roost.registry_client.foreign import foreign_format, is_archive
from roost.registry_client.model_config import (
    ModelDescription,
    parse_config_text,
    served_versions,
    signature_from_config,
)
from roost.registry_client.model_folder import ModelFolder
from roost.runtimes.adapters import ADAPTERS, installed_runtimes, kind_of
from roost.server.config import ServeConfig
from roost.server.inspection.artifacts import look_at_archive
from roost.server.inspection.reasons import config_file_of, framework_of, reason_for
from roost.server.inspection.report import Report, VersionReport
from roost.server.inspection.targets import Target
from roost.server.inspection.versions import Files, VersionLook, say_tensors
from roost.server.known_sizes import Known, KnownSizes


@dataclass(frozen=True, slots=True)
class Looker:
    """Looks at models as a server with a configuration would.

    Attributes:
        config: That of the server.
        known: What it has found out.
        allow_code: Whether the model may bring code.
        may_load: Whether it is loaded to see what it says then.
        above: The ensembles that it is looked at for.
    """

    config: ServeConfig
    known: KnownSizes
    allow_code: bool
    may_load: bool
    above: frozenset[str] = frozenset()

    def look(self, target: Target) -> Report:
        """Looks at a model."""
        report = Report(str(target.path))
        try:
            if target.folder is None:
                self._look_at_file(target.path, report)
            else:
                self._look_at_folder(
                    replace(target.folder, model_format=self.config.model_format), target.version, report
                )
        except RoostError as error:
            report.problems.append(error.message)
        except MemoryError:
            report.problems.append("there is not enough memory to look at it")
        return report

    def _look_at_file(self, path: Path, report: Report) -> None:
        """A file without a configuration, as if it were alone in a version's folder."""
        report.model = shown(path.stem)
        with open_regular(str(path), path.name):  # else whatever looks into it might wait, or read, for ever
            pass
        foreign = "" if backend_of_file(path.name) else foreign_format([path.name])
        if foreign:
            report.problems.append(foreign)
            report.problems += look_at_archive(str(path)) if is_archive(path.name) else []
            return
        of_format = backend_of_format(self.config.model_format)
        detected = of_format or backend_of_file(path.name)
        if not detected:
            raise InvalidArgument(
                f"nothing says what '{shown(path.name)}' is (--model-format does); the runtimes are: {known_backends()}"
            )
        report.notes.append(_advice(path.name, detected))
        description = parse_config_text("", report.model, detected_backend=detected)
        self._describe(description, report, "" if of_format else path.name)
        status = path.stat()
        stamp = (FileStamp(path.name, status.st_ino, status.st_size, status.st_mtime_ns),)
        folder = str(path.parent)
        version = VersionReport("1")
        report.versions.append(version)
        self._look_at_version(description, version, Files(str(path), folder, folder, stamp), None)

    def _look_at_folder(self, folder: ModelFolder, wanted: str, report: Report) -> None:
        report.model, report.config = folder.name, config_file_of(folder)
        if not is_name(folder.name):
            report.problems.append(f"'{shown(folder.name)}' can't be a model's name, so a server leaves the folder out")
        description = folder.load_config()
        names = _names_in(folder, description)
        self._describe(description, report, _telling_file(names, description.backend))
        versions = folder.versions_of(description)
        served = served_versions(description, versions)
        report.unserved = [version for version in versions if version not in served]
        if not versions:
            nothing = "it has neither version folders nor a file that some runtime reads"
            report.problems.append(folder.foreign_format() or nothing)
        if versions and not served:
            report.problems.append("its version_policy serves none of its versions")
        for number in [wanted] if wanted else served:
            version = VersionReport(number)
            report.versions.append(version)
            if description.ensemble is None:
                self._look_in_folder(folder, description, version)
            else:
                self._look_at_steps(folder, description, version)
        for file_name in {output.label_filename for output in description.config.output} - {""}:
            folder.read_labels(file_name)

    def _describe(self, description: ModelDescription, report: Report, file_name: str) -> None:
        """Which runtime it is, and what that would need."""
        backend = description.backend
        report.runtime = backend
        report.reason = reason_for(description, report.config, file_name, self.config.model_format)
        report.notes += [f"'{key}' of its configuration has no effect" for key in description.without_effect]
        if BACKENDS[backend].is_code and not self.allow_code:
            report.problems.append("its models are code: it needs --allow-code")
        if backend not in ADAPTERS:
            return
        report.framework = framework_of(backend)
        if not installed_runtimes([backend]):
            extra = ADAPTERS[backend].extra
            report.problems.append(f"its framework is not installed: pip install 'roost[{extra}]'")
        if self.config.workers_of.get(kind_of(backend)) == 0:
            report.problems.append(f"--workers-of {kind_of(backend)}=0 says that such models are not served")

    def _look_in_folder(self, folder: ModelFolder, description: ModelDescription, version: VersionReport) -> None:
        try:
            path, root = folder.find(version.version, description)
            files = Files(path, root, str(folder.path), stamp_files(root))
            known = self.known.look_up(folder, description, version.version, files.size_bytes)
        except RoostError as error:
            version.problems.append(error.message)
            return
        self._look_at_version(description, version, files, known)

    def _look_at_version(
        self, description: ModelDescription, version: VersionReport, files: Files, known: Known | None
    ) -> None:
        VersionLook(self.config, self.allow_code, self.may_load, description, files, known, version).take()

    def _look_at_steps(self, folder: ModelFolder, description: ModelDescription, version: VersionReport) -> None:
        """A model that is made of others has no file: it is served if they are."""
        assert description.ensemble is not None
        names = description.ensemble.models
        version.what = f"an ensemble of {', '.join(names)}"
        for name in names:
            version.problems += self._problems_of_step(ModelFolder(name, folder.path.parent / name), folder.name)
        declared = signature_from_config(description)
        if declared is not None:
            say_tensors(version, declared, "configuration")

    def _problems_of_step(self, folder: ModelFolder, ensemble: str) -> list[str]:
        """Why a model is not served that another one is made of, if so."""
        name = shown(folder.name)
        if not folder.path.is_dir():
            return [f"model '{name}', which it is made of, is not beside it"]
        above = self.above | {ensemble}
        if folder.name in above:
            return [f"model '{name}' is made of itself"]
        report = replace(self, may_load=False, above=above).look(Target(folder.path, folder))
        reasons = [*report.problems, *(reason for version in report.versions for reason in version.problems)]
        return [f"model '{name}', which it is made of, is not ready: {reason}" for reason in reasons[:1]]


def _advice(name: str, backend: str) -> str:
    """What to know of a file that was looked at alone."""
    usual = BACKENDS[backend].files
    if name in usual:
        return "it was looked at as a file alone: the configuration of its model, if there is one, may say more"
    return (
        f"it was looked at as a file alone: in a version's folder it has to be called {' or '.join(usual)}, or "
        "default_model_filename of config.pbtxt has to name it"
    )


def _names_in(folder: ModelFolder, description: ModelDescription) -> list[str]:
    """The files of its newest version, or of what stands for one."""
    path = folder.path
    if description.place is not None:
        path = path / description.place.folder
    elif (versions := folder.versions()) and (path / versions[-1]).is_dir():
        path = path / versions[-1]
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError:
        return []


def _telling_file(names: list[str], backend: str) -> str:
    """The file that says that a backend is to load it, if one does."""
    found = [(name not in BACKENDS[backend].files, name) for name in names if backend_of_file(name) == backend]
    return min(found)[1] if found else ""
