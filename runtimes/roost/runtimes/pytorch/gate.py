"""That loading and running an archive runs nothing but PyTorch's own operators.

PyTorch's loaders trust what they load: ``torch.export.load`` unpickles, evaluates expressions, and writes names of the
archive into Python code that it then executes; programs of both formats can read and write files. So everything in
an archive is looked at first, and what is not known to be harmless is refused, unless code is allowed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.runtimes.pytorch.archives import MODELS_FOLDER, SCRIPT_FOLDER, Archive

_REACHING: Final = re.compile(r"\b(?:from_file|save)\b|\bgetattr\b(?!\([\w.]+, \"[^\"\\]*\"\))")
"""Operators on files, whose names may not occur at all, as they can be passed on; and what finds one by a text that
hides it. PyTorch itself writes ``getattr`` for attributes like ``"0"``."""
_SCRIPT_SPACES: Final = re.compile(r"\b(?P<what>ops|classes)\s*\.\s*(?P<space>\w+)")
_COMMENT: Final = re.compile(r"#[^\n]*")
_HARMLESS: Final = {
    "classes": frozenset({"quantized", "rnn", "sparse", "xnnpack"}),
    "ops": frozenset(
        {"_quantized", "aten", "mkldnn", "mkldnn_prepacked", "onednn", "prepacked", "prim", "quantized", "sparse"}
    ),
}

_ENTRIES: Final = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(serialization_id|version)|extra/.*|models/[\w.-]+\.json"
    r"|data/sample_inputs/[\w.-]+\.pt"
    r"|data/weights/([\w.-]+_weights_config\.json|weight_\d+)"
    r"|data/constants/([\w.-]+_constants_config\.json|tensor_\d+)",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[\w.+<=:/-]*")
"""What names are made of. No parenthesis, bracket, quote or space: so no call, wherever it is pasted into code."""
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(?P<space>\w+)\.(?P<name>\w+)(\.\w+)?|_operator\.\w+|math\.trunc|torch\._?sym_\w+"
)
_SPACES: Final = frozenset({"_quantized", "aten", "mkldnn", "onednn", "prims", "quantized", "quantized_decomposed"})
_HIGHER_ORDER: Final = frozenset(
    {"associative_scan", "cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"}
)
_UNSAFE_OPERATORS: Final = frozenset({"from_file", "save"})
_FREE_TEXT: Final = frozenset({"as_string", "as_strings", "metadata"})
"""What PyTorch quotes or only shows."""
_EVALUATED: Final = frozenset({"as_operator", "context", "expr_str", "in_spec", "out_spec", "target"})
_OBJECTS: Final = frozenset({"as_custom_obj", "class_fqn", "custom_obj", "custom_obj_name"})
_STRUCTURES: Final = frozenset({None, "builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict"})
_MAX_DEPTH: Final = 100

_EXPRESSION_PARTS = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.keyword,
    ast.Load,
    ast.UnaryOp,
    ast.BinOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Tuple,
)


def check_script(archive: Archive) -> None:
    """Refuses TorchScript that reaches for files, or for classes that do other things than compute.

    Raises:
        FailedPrecondition: If it does.
    """
    for name in archive.get_all_records():
        lower = name.lower()  # as PyTorch looks for entries
        if lower.startswith(SCRIPT_FOLDER) and lower.endswith(".py"):
            _check_source(archive.get_record(name).decode(errors="replace"))


def _check_source(source: str) -> None:
    if found := _REACHING.search(source):
        raise _refused(f"it may read or write files ({found[0]})")
    # Once more without comments, which may stand within a name; a text may hold what looks like the start of one.
    for text in (source, _COMMENT.sub("", source)):
        for found in _SCRIPT_SPACES.finditer(text):
            if found["space"] not in _HARMLESS[found["what"]]:
                raise _refused(f"it uses torch.{found['what']}.{found['space']}")


def check_export(archive: Archive) -> None:
    """Refuses an exported program that is more than operators and tensors.

    Raises:
        InvalidArgument: If it is broken.
        FailedPrecondition: If something in it is not known to be harmless.
    """
    for name in archive.get_all_records():
        if not _ENTRIES.fullmatch(name):
            raise _refused(f"it has an unknown entry '{name[:80]}'")
        if name.startswith(MODELS_FOLDER):
            _check(_parsed(archive, name), "", 0)
        elif name.endswith("_config.json"):
            _check_payloads(_parsed(archive, name))


def _parsed(archive: Archive, name: str) -> Any:
    try:
        return json.loads(archive.get_record(name))
    except (ValueError, RecursionError):
        raise InvalidArgument("the archive is broken: an entry is not JSON") from None


def _check_payloads(config: Any) -> None:
    """Weights and constants have to be bytes of tensors."""
    _check(config, "", 0)
    payloads = config.get("config") if isinstance(config, Mapping) else None
    if not isinstance(payloads, Mapping) or not all(isinstance(payload, Mapping) for payload in payloads.values()):
        raise InvalidArgument("the archive is broken: a list of weights is none")
    for payload in payloads.values():
        if payload.get("use_pickle") is not False:
            raise _refused("weights are pickled")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            raise _refused("constants are objects")


def _check(value: Any, key: str, depth: int) -> None:
    """Looks at a part of a program, which was found under this key."""
    if depth > _MAX_DEPTH:
        raise _refused("it is nested too deeply")
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_name(name, key)
            _check_entry(name, part, depth)
    elif isinstance(value, list):
        for part in value:
            _check(part, key, depth + 1)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_name(name: str, key: str) -> None:
    if key == "range_constraints":  # of sizes, which may be computed
        _check_expression(name)
    elif not _PLAIN.fullmatch(name):
        raise _refused(f"'{name[:80]}' is no name")


def _check_entry(name: str, part: Any, depth: int) -> None:
    if name in _FREE_TEXT and _is_text(part):
        return
    if name in _OBJECTS:
        raise _refused("it has objects that are no tensors")
    _check(part, name, depth + 1)


def _is_text(part: Any) -> bool:
    """Whether something is text and no more; many of a program's parts have names that it can choose."""
    if isinstance(part, Mapping):
        return not part.keys() & (_EVALUATED | _OBJECTS) and all(isinstance(text, str) for text in part.values())
    return isinstance(part, str) or (isinstance(part, list) and all(isinstance(text, str) for text in part))


def _check_text(text: str, key: str) -> None:
    match key:
        case "target" | "as_operator":
            _check_operator(text)
        case "expr_str":
            _check_expression(text)
        case "in_spec" | "out_spec" | "context":
            _check_structure(text)
        case "guards_code":
            pass  # never evaluated: the module is made without its guards
        case _ if not _PLAIN.fullmatch(text):
            raise _refused(f"'{text[:80]}' is no name")


def _check_operator(target: str) -> None:
    found = _OPERATOR.fullmatch(target)
    if found is None:
        raise _refused(f"'{target[:80]}' is no operator")
    space, name = found["space"], found["name"]
    if space is None or (space == "higher_order" and name in _HIGHER_ORDER):
        return
    if space not in _SPACES or name in _UNSAFE_OPERATORS:
        raise _refused(f"operator {target[:80]} may do more than compute")


def _check_structure(text: str) -> None:
    """How values are nested: JSON, with JSON in some of its strings."""
    try:
        structure = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("the structure of its inputs is not plain") from None
    _check(structure, "", 0)
    if "__enum__" in text or not all(type_ in _STRUCTURES for type_ in _types(structure)):
        raise _refused("the structure of its inputs needs classes")


def _types(structure: Any) -> Iterator[Any]:
    """Whatever is called a type, at any depth."""
    if isinstance(structure, Mapping):
        if "type" in structure:
            yield structure["type"] if isinstance(structure["type"], str | None) else ""
        structure = list(structure.values())
    if isinstance(structure, list):
        for part in structure:
            yield from _types(part)


def _check_expression(text: str) -> None:
    """An expression over sizes, which is evaluated as Python: nothing but constructors, numbers and names."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(f"'{text[:80]}' is no expression") from None
    for node in ast.walk(tree):
        is_known = isinstance(node, _EXPRESSION_PARTS)
        if isinstance(node, ast.Call):
            is_known = isinstance(node.func, ast.Name) and node.func.id[0].isupper()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_known = node.value.isidentifier()
        if not is_known:
            raise _refused(f"'{text[:80]}' is no expression over sizes")


def _refused(what: str) -> FailedPrecondition:
    return FailedPrecondition(f"the model is not only data: {what}; it needs --allow-code")
