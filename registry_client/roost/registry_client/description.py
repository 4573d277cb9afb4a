"""Parsing of model configurations: ``config.pbtxt`` and the JSON form that load calls carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import json_format, text_format
from roost.core.errors import InvalidArgument
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import BACKENDS, DEFAULT_BACKEND, resolve_backend
from roost.registry_client.config_fields import fields_without_effect, loaded_part
from roost.registry_client.ensemble import Ensemble, read_ensemble
from roost.registry_client.onnx_options import onnx_options
from roost.registry_client.policy import PREFIX, THREADS, ModelPolicy
from roost.registry_client.sequences import SequencePolicy, of_one_copy, sequence_policy
from roost.registry_client.validation import check_config

MAX_CONFIG_BYTES = 1 << 20

_MAX_REASON_CHARACTERS = 300
_TEXT_SOURCE = "config.pbtxt"
_JSON_SOURCE = "model config"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a model are that has one version and no version folders.

    Attributes:
        version: What the version is called.
        folder: The folder of the files, relative to the model's; empty for the model's folder itself.
    """

    version: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is known of a model without loading it; nobody changes ``config``.

    Attributes:
        config: The configuration as written, with the name filled.
        backend: A key of ``BACKENDS``.
        policy: What the owner asks for.
        max_batch_size: 0 if the model's tensors have no batch dimension that the server may use.
        options: What the runtime is told when it loads the model.
        without_effect: Keys that are set, but that the server can't act on.
        place: Where the files are, if not in version folders.
        ensemble: The steps, if the model is made of others; then it has no files.
        sequences: How requests of sequences reach it, if it knows of them.
    """

    config: mc.ModelConfig
    backend: str
    policy: ModelPolicy
    max_batch_size: int
    options: Mapping[str, str] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
    place: Place | None = None
    ensemble: Ensemble | None = None
    sequences: SequencePolicy | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.config.HasField("sequence_batching"):
            object.__setattr__(self, "sequences", sequence_policy(self.config))

    def loads_like(self, other: ModelDescription) -> bool:
        """Whether an instance that was loaded for one of them is right for the other, if the files are the same."""
        if (self.backend, self.policy, self.options, self.place) != (
            other.backend,
            other.policy,
            other.options,
            other.place,
        ):
            return False
        return bool(loaded_part(self.config) == loaded_part(other.config))

    @property
    def model_files(self) -> tuple[str, ...]:
        """Names that the model's file or folder in a version's folder may have; the first that is there is it."""
        name = self.config.default_model_filename
        return (name,) if name else BACKENDS[self.backend].files

    @property
    def decoupled(self) -> bool:
        """Whether a request may get more or fewer responses than one."""
        return self.config.model_transaction_policy.decoupled


def parse_config_text(text: str, name: str, *, detected_backend: str = "") -> ModelDescription:
    """Reads the text of a ``config.pbtxt``.

    Args:
        text: Protobuf text format; may be empty.
        name: The model's name, which a name in the text must equal.
        detected_backend: The backend that the model's files hint at, for texts that name none.

    Raises:
        InvalidArgument: If it can't be understood or asks for what can't be done; the text has the line if
            it is known.
    """
    _check_size(text, _TEXT_SOURCE)
    config = mc.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise InvalidArgument(_text_reason(text, error)) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"{_TEXT_SOURCE}: {tidy(str(error))}") from None
    return describe(config, name, _TEXT_SOURCE, detected_backend)


def parse_config_json(text: str, name: str, *, detected_backend: str = "") -> ModelDescription:
    """Reads a configuration in JSON; integers may be strings, enumerations are names.

    Args:
        text: A JSON object.
        name: The model's name, which a name in the text must equal.
        detected_backend: The backend that the model's files hint at, for texts that name none.

    Raises:
        InvalidArgument: If it can't be understood, has unknown fields or asks for what can't be done.
    """
    _check_size(text, _JSON_SOURCE)
    # The parser takes lists and strings for objects here and there; at least the outermost must be one.
    if not text.lstrip(" \t\r\n").startswith("{"):
        raise InvalidArgument(f"{_JSON_SOURCE}: not a JSON object")
    config = mc.ModelConfig()
    try:
        json_format.Parse(text, config)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"{_JSON_SOURCE}: {tidy(str(error))}") from None
    return describe(config, name, _JSON_SOURCE, detected_backend)


def describe(config: mc.ModelConfig, name: str, source: str, detected: str) -> ModelDescription:
    """Checks a configuration and says what it means.

    Args:
        config: The configuration, which the description keeps.
        name: The model's name, which a name in the configuration must equal.
        source: What error texts begin with.
        detected: The backend that the model's files hint at, for configurations that name none.

    Raises:
        InvalidArgument: If it asks for what can't be done.
    """
    if config.name and config.name != name:
        raise InvalidArgument(f"{source}: name '{tidy(config.name)}' is not the model's name '{name}'")
    config.name = name
    try:
        # First what is not supported at all: a missing backend is not its problem.
        check_config(config)
        backend = resolve_backend(config.backend, config.platform, config.default_model_filename, detected)
        if config.model_transaction_policy.decoupled and not BACKENDS[backend].may_decouple:
            raise InvalidArgument(f"decoupled models are not supported by backend '{backend}'")
        policy = ModelPolicy.from_parameters({key: value.string_value for key, value in config.parameters.items()})
        policy = of_one_copy(policy, sequence_policy(config))
        options = _options(config, backend)
    except InvalidArgument as error:
        raise InvalidArgument(f"{source}: {tidy(error.message)}") from None
    without_effect, ensemble = _without_effect(config, backend), read_ensemble(config)
    return ModelDescription(config, backend, policy, config.max_batch_size, options, without_effect, ensemble=ensemble)


def _options(config: mc.ModelConfig, backend: str) -> dict[str, str]:
    """What the runtime is told: the parameters that it takes into account, as they are if it checks them itself."""
    if backend == DEFAULT_BACKEND:
        return onnx_options(config)
    known = BACKENDS[backend].parameters
    return {
        key: value.string_value
        for key, value in config.parameters.items()
        if (known is None or key in known) and not key.startswith(PREFIX)
    }


def _without_effect(config: mc.ModelConfig, backend: str) -> tuple[str, ...]:
    known = BACKENDS[backend].parameters
    unknown = [key for key in sorted(config.parameters) if known is not None and key not in known]
    is_placed = not BACKENDS[backend].is_composed  # nothing of an ensemble is ever in memory
    unknown = [key for key in unknown if not (is_placed and key.startswith(PREFIX))]
    if not BACKENDS[backend].has_threads:
        unknown += [key for key in config.parameters if key == THREADS]
    fields = ["model_warmup"] if not is_placed and config.model_warmup else []
    return (*fields_without_effect(config), *fields, *(tidy(f"parameters.{key}") for key in unknown))


def _check_size(text: str, source: str) -> None:
    # Characters are bytes or fewer than bytes, so this never refuses what a limit of bytes lets through.
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidArgument(f"{source}: larger than the limit of {MAX_CONFIG_BYTES} bytes")


def _text_reason(text: str, error: text_format.ParseError) -> str:
    """Rewrites ``line:column : 'the whole line': what is wrong`` without the line, which may be long."""
    line, column = error.GetLine(), error.GetColumn()
    message = str(error)
    if line is None:
        return f"{_TEXT_SOURCE}: {tidy(message)}"
    message = message.removeprefix(f"{line}:{column} : ")
    lines = text.split("\n")
    if 0 < line <= len(lines):
        message = message.removeprefix(f"'{lines[line - 1]}': ")
    message = message.removeprefix("'': ")
    return f"{_TEXT_SOURCE} line {line}, column {column}: {tidy(message)}"


def tidy(message: str) -> str:
    """The first line of a text, printable and not too long."""
    line = "".join(c if c.isprintable() else "?" for c in message.split("\n", 1)[0]).strip()
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[:_MAX_REASON_CHARACTERS] + "..."
