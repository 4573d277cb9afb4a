"""PyTorch's archives: what they are, and whether loading them would run more than PyTorch's own operators."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import Any

from roost.core.errors import RoostError
from roost.core.tensors import Signature, TensorSpec
from roost.registry_client.load_options import ALLOW_CODE
from roost.runtimes.pytorch.archives import MODELS_FOLDER, Kind, kind_of, no_archive
from roost.runtimes.pytorch.gate import check_export, check_script
from roost.runtimes.pytorch.storages import check_tensors
from roost.server.inspection.archives import ZIP_ERRORS, ZipArchive
from roost.server.inspection.report import Findings

_SAMPLES = "data/sample_inputs/"
_DATATYPES: Mapping[int, str] = {
    1: "UINT8",
    2: "INT8",
    3: "INT16",
    4: "INT32",
    5: "INT64",
    6: "FP16",
    7: "FP32",
    8: "FP64",
    12: "BOOL",
    13: "BF16",
    28: "UINT16",
}
"""Numbers of datatypes in exported programs."""

_FORMS = {"as_sym_int": "INT64", "as_sym_bool": "BOOL", "as_sym_float": "FP64"}


def look_at_torch(path: str, options: Mapping[str, str]) -> Findings:
    """Looks at a file; PyTorch is not needed for that.

    Args:
        path: The file.
        options: Those of its load.
    """
    found = Findings()
    try:
        with zipfile.ZipFile(path) as file:
            _look(ZipArchive(file), options, found)
    except zipfile.BadZipFile:
        with open(path, "rb") as start:
            found.problems.append(no_archive(start.read(16)).message)
    except RoostError as error:
        found.problems.append(error.message)
    except ZIP_ERRORS as error:
        found.problems.append(f"the archive is damaged: {error}")
    return found


def _look(archive: ZipArchive, options: Mapping[str, str], found: Findings) -> None:
    kind = kind_of(archive)
    found.what = f"PyTorch, {kind.value}"
    if options.get(ALLOW_CODE) != "true":
        if kind in (Kind.COMPILED, Kind.OLD_EXPORT):
            found.problems.append(f"a model of {kind.value} may run any code: it needs --allow-code")
        elif kind is Kind.SCRIPT:
            check_script(archive)
            check_tensors(archive)
        else:
            check_export(archive)
    if kind is Kind.EXPORT:
        if any(archive.get_record_size(name) for name in archive.get_all_records() if name.startswith(_SAMPLES)):
            found.until_loaded.append("only a load can tell whether its sample inputs are tensors (--load)")
        found.signature = _exported_signature(archive)
    elif kind in (Kind.SCRIPT, Kind.COMPILED) and not _is_declared(options):
        found.problems.append(
            f"models of {kind.value} do not say what they take and give: declare all inputs and outputs, with "
            "data_type and dims, in config.pbtxt"
        )


def _is_declared(options: Mapping[str, str]) -> bool:
    return all(options.get(f"roost.{side}", "[]") != "[]" for side in ("inputs", "outputs"))


def _exported_signature(archive: ZipArchive) -> Signature | None:
    """What an exported program says of itself, named as its adapter names it; None if that can't be read here."""
    models = sorted(name for name in archive.get_all_records() if name.startswith(MODELS_FOLDER))
    wanted = f"{MODELS_FOLDER}model.json"
    try:
        program = json.loads(archive.get_record(wanted if wanted in models else models[0]))["graph_module"]
        values = program["graph"]["tensor_values"]
        inputs = [spec["user_input"]["arg"] for spec in program["signature"]["input_specs"] if "user_input" in spec]
        outputs = [spec["user_output"]["arg"] for spec in program["signature"]["output_specs"] if "user_output" in spec]
        keys = _keys(program["module_call_graph"][0]["signature"]["out_spec"])
        names = keys if len(keys) == len(outputs) else [""] * len(outputs)
        made: list[TensorSpec] = []
        for arg, key in zip(outputs, names, strict=True):
            if "as_none" not in arg:
                made.append(_result(arg, values, key or f"OUTPUT__{len(made)}"))
        given = (_argument(arg, values) for arg in inputs)
        return Signature(tuple(spec for spec in given if spec is not None), tuple(made))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def _keys(out_spec: str) -> list[str]:
    """The keys of the plain dict that a program gives; none if it gives something else."""
    structure = json.loads(out_spec)[1]
    return list(json.loads(structure["context"])) if structure["type"] == "builtins.dict" else []


def _argument(arg: Mapping[str, Any], values: Mapping[str, Any]) -> TensorSpec | None:
    """An argument; None for a constant, which requests have nothing to do with."""
    kind, value = next(iter(arg.items()))
    if kind == "as_tensor":
        return _tensor(value["name"], values[value["name"]])
    return TensorSpec(value["as_name"], _FORMS[kind], (1,)) if kind in _FORMS else None


def _result(arg: Mapping[str, Any], values: Mapping[str, Any], name: str) -> TensorSpec:
    return _tensor(name, values[arg["as_tensor"]["name"]])


def _tensor(name: str, meta: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(size["as_int"]) if "as_int" in size else -1 for size in meta["sizes"])
    return TensorSpec(name, _DATATYPES[meta["dtype"]], shape)
