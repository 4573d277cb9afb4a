"""The three places where settings are written, read into one mapping each, with unknown names refused."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from roost.server.arguments import ConfigError, Parser, did_you_mean
from roost.server.settings import Settings

PREFIX = "ROOST_"
CONFIG_VARIABLE = "ROOST_CONFIG"

# Kubernetes describes each Service of a namespace to its pods in variables that start with the Service's name, so
# that a Service called roost, or roost-http, sets some that look like ours.
_SERVICE_LINK = re.compile(
    r"ROOST_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Layers:
    """Values by field name, as they were written; where several have one, the first of the three counts."""

    flags: Mapping[str, Any]
    environment: Mapping[str, Any]
    file: Mapping[str, Any]
    file_name: str = ""
    print_config: bool = False

    def where(self, name: str) -> str:
        """How the user wrote the setting that counts."""
        if name in self.flags:
            return flag_of(name)
        if name in self.environment:
            return variable_of(name)
        if name in self.file:
            return f"{self.file_name}: {name}"
        return flag_of(name)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def read_layers(argv: Sequence[str], environ: Mapping[str, str]) -> Layers:
    """Reads flags, environment and the file that one of them names.

    Raises:
        ConfigError: If a flag, variable or key is unknown, or the file can't be read.
        SystemExit: After printing the help, if it is asked for.
    """
    flags = _read_flags(argv)
    print_config = bool(flags.pop("print_config", False))
    flag_file = flags.pop("config", None)
    environment = _read_environment(environ)
    file_name = flag_file if flag_file is not None else environ.get(CONFIG_VARIABLE, "")
    where = "--config" if flag_file is not None else CONFIG_VARIABLE
    file = _read_file(file_name, where) if file_name or flag_file is not None else {}
    return Layers(flags, environment, file, file_name, print_config)


def serve_parser() -> Parser:
    """A parser with a flag for each setting; values stay as they were written."""
    parser = Parser(
        prog="roost serve",
        description="Serve models over REST and gRPC, loading and evicting them as requests come.",
        epilog="Every setting is also a ROOST_ environment variable (ROOST_HTTP_PORT) and a key in the --config file "
        "(http_port). A flag goes before the variable, the variable before the file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings.")
    parser.add_argument("--print-config", action="store_true", help="Print the settings in effect as YAML, then exit.")
    groups = {}
    for name, field in Settings.model_fields.items():
        extra = extra_of(field)
        if extra["group"] not in groups:
            groups[extra["group"]] = parser.add_argument_group(extra["group"])
        _add_flag(groups[extra["group"]], name, field)
    return parser


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    extra = extra_of(field)
    text = argparse.SUPPRESS if extra["hidden"] else f"{field.description} Default: {default_text(field)}."
    text = text.replace("%", "%%").replace("`", "")
    if not extra["metavar"]:
        group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, help=text)
    elif extra["alone"] is not None:
        alone = {"nargs": "?", "const": extra["alone"]}
        group.add_argument(flag_of(name), action="append", metavar=extra["metavar"], help=text, **alone)
    elif isinstance(field.default, tuple):
        group.add_argument(flag_of(name), action="append", metavar=extra["metavar"], help=text)
    else:
        group.add_argument(flag_of(name), metavar=extra["metavar"], help=text)


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """What a setting says of itself besides its type."""
    assert isinstance(field.json_schema_extra, dict)
    return dict(field.json_schema_extra)


def default_text(field: FieldInfo) -> str:
    """A setting's default in words."""
    shown = extra_of(field)["shown_default"]
    if shown is not None:
        return str(shown)
    default = field.default
    if default in (None, ()):
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:g}s"
    if isinstance(default, int) and default % 2**20 == 0:
        return f"{default >> 20}MiB"
    return str(default)


def _read_flags(argv: Sequence[str]) -> dict[str, Any]:
    return vars(serve_parser().parse_all(argv))


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {variable_of(name): name for name in Settings.model_fields}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE or _is_service_link(variable, text):
            continue
        if variable not in names:
            raise ConfigError(
                f"unknown environment variable {variable}" + did_you_mean(variable, [*names, CONFIG_VARIABLE])
            )
        if not text:  # containers often pass variables through that nobody has set
            continue
        field = Settings.model_fields[names[variable]]
        separator = extra_of(field)["separator"]
        is_list = isinstance(field.default, tuple)
        values[names[variable]] = [part.strip() for part in text.split(separator) if part.strip()] if is_list else text
    return values


def _is_service_link(variable: str, text: str) -> bool:
    if _SERVICE_LINK.match(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_ADDRESS.match(text) is not None


def _read_file(name: str, where: str) -> dict[str, Any]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: can't read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text in UTF-8") from None
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {_yaml_reason(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected keys and values at the top level")
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(f"{name}: unknown key {key}" + did_you_mean(str(key), Settings.model_fields))
    return {key: value for key, value in values.items() if value is not None}


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split()) or type(error).__name__
