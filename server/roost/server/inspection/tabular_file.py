"""Files of scikit-learn, XGBoost and LightGBM: what they are, and what it would run to read them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from roost.core.names import shorten
from roost.registry_client.load_options import ALLOW_CODE
from roost.server.inspection.archives import MAX_READ_BYTES, ZIP_ERRORS
from roost.server.inspection.pickles import is_pickle, names_in, suspects
from roost.server.inspection.report import Findings

_ZIP = b"PK\x03\x04"
_SCHEMA = "schema.json"
_MAX_SHOWN = 8
_PACKED = {b"\x78": "zlib", b"\x1f\x8b": "gzip", b"BZ": "bz2", b"\xfd7": "xz", b"\x04\x22": "lz4"}
"""How files begin that joblib has packed."""


def look_at_sklearn(path: str, options: Mapping[str, str]) -> Findings:
    """Looks at a skops file or a pickle, whatever its name."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return Findings(problems=["the model's file is empty"])
    return _look_at_skops(path) if head.startswith(_ZIP) else _look_at_pickle(path, head, options)


def _look_at_skops(path: str) -> Findings:
    found = Findings()
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(_SCHEMA)
            if info.file_size > MAX_READ_BYTES:
                raise ValueError("its description is too large")
            schema = json.loads(archive.read(info))
        found.what = f"skops file of a {schema['__module__']}.{schema['__class__']}"
        if "_skops_version" in schema:
            found.what += f", written by skops {shorten(str(schema['_skops_version']))}"
        found.until_loaded.append("only a load can tell whether all objects in it are of trusted types (--load)")
    except KeyError:
        found.problems.append("the file is an archive, but not what skops writes")
    except (*ZIP_ERRORS, TypeError) as error:
        found.problems.append(f"the file is damaged: {error}")
    return found


def _look_at_pickle(path: str, head: bytes, options: Mapping[str, str]) -> Findings:
    name = os.path.basename(path)
    packed = next((what for start, what in _PACKED.items() if head.startswith(start)), "")
    found = Findings(what=f"a pickle, packed with {packed}" if packed else "a pickle")
    if not packed and not is_pickle(head):
        found.what = "neither a skops file nor a pickle of today"
    names = set() if packed else names_in(Path(path))
    if names:
        packages = sorted({name.partition(".")[0] for name in names})
        found.what += f", which imports from {', '.join(packages[:_MAX_SHOWN])}"
    reaching = suspects(names)
    if reaching:
        found.problems.append(f"reading the pickle would call {', '.join(map(shorten, reaching[:_MAX_SHOWN]))}")
    is_allowed = options.get(ALLOW_CODE) == "true"
    if name.endswith(".skops"):
        (found.notes if is_allowed else found.problems).append(f"'{name}' is called a skops file, but is none")
    if not is_allowed:
        found.problems.append(
            f"'{name}' is a pickle, which can run any code when it is read: save the model with "
            "skops.io.dump(model, 'model.skops'), or start the server with --allow-code"
        )
    return found


def look_at_xgboost(path: str) -> Findings:
    """Looks at how the file begins."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"{"):
        is_text = head[1:].lstrip()[:1] in (b'"', b"}")
        return Findings(what=f"XGBoost, {'JSON' if is_text else 'UBJSON'}")
    if head.startswith(b"tree"):
        return Findings(problems=['the file is a LightGBM model: say backend: "lightgbm" in config.pbtxt'])
    return Findings(problems=["the file is no model of XGBoost, or in its old binary format: save it as model.ubj"])


def look_at_lightgbm(path: str) -> Findings:
    """Looks at how the file begins."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"tree"):
        return Findings(what="LightGBM, text")
    return Findings(problems=["the file is not LightGBM's text"])
