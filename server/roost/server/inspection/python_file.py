"""Python models, read as text: which class there is, what it says that it takes and gives, and what it imports."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator

from roost.core.tensors import DATATYPES, Signature, TensorSpec
from roost.server.inspection.report import Findings

_TRITON_CLASS = "TritonPythonModel"
_PROVIDED = frozenset({"c_python_backend_utils", "roost", "triton_python_backend_utils"})
_MAX_BYTES = 1 << 20
_ENVIRONMENT = "venv"


def look_at_python(path: str, root: str, model_folder: str, *, has_environment: bool) -> Findings:
    """Looks at a ``model.py``; nothing of it is run.

    Args:
        path: The file.
        root: The folder of its version.
        model_folder: The model's folder.
        has_environment: Whether its configuration names an environment of its own.
    """
    found = Findings()
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:  # parsed, a program takes hundreds of times its size
            found.notes.append("it is too large to be looked into")
            return found
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        found.problems.append(f"'{os.path.basename(path)}' is no Python program: {_said(error)}{where}")
        return found
    _look_for_class(tree, found)
    if not has_environment and not os.path.isdir(os.path.join(model_folder, _ENVIRONMENT)):
        missing = sorted(name for name in set(_imports(tree)) if not _is_there(name, root))
        if missing:
            found.problems.append(
                f"it imports {', '.join(missing)}, not installed here nor beside it, and has no environment of its own"
            )
    return found


def _said(error: BaseException) -> str:
    return error.msg if isinstance(error, SyntaxError) else type(error).__name__


def _look_for_class(tree: ast.Module, found: Findings) -> None:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if any(node.name == _TRITON_CLASS for node in classes):
        found.what = f"a {_TRITON_CLASS}, as Triton's Python models are"
        return
    models = [node for node in classes if any(_last_name(base) == "Model" for base in node.bases)]
    if len(models) == 1:
        found.what = f"a class {models[0].name} that derives from roost.runtimes.Model"
        found.signature = _signature(models[0])
    else:
        found.notes.append("it can't be told without running it which class of it is the model")


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _signature(class_: ast.ClassDef) -> Signature | None:
    """What is written out in the class; None if it is computed."""
    tables = {}
    for node in class_.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                tables[target.id] = node.value
    try:
        inputs, outputs = (tuple(_specs(tables[name])) for name in ("inputs", "outputs"))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None
    return Signature(inputs, outputs)


def _specs(table: ast.expr | None) -> Iterator[TensorSpec]:
    rows = ast.literal_eval(table) if table is not None else {}
    for name, (datatype, shape) in rows.items():
        yield TensorSpec(str(name), DATATYPES[datatype].name, tuple(int(dim) for dim in shape))


def _imports(tree: ast.Module) -> Iterator[str]:
    """The packages that are imported when the file is, but for those that it can do without."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _is_there(name: str, root: str) -> bool:
    if name in _PROVIDED or name in sys.stdlib_module_names:
        return True
    if os.path.exists(os.path.join(root, name)) or os.path.exists(os.path.join(root, f"{name}.py")):
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
