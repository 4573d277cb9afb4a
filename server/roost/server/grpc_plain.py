"""The hot half of steps 1 and 8 over gRPC: plain messages of inference without protobuf objects.

Clients repeat themselves: of two requests for a model most often only the id and the elements differ. So what the
general codec made of a request is kept as a template, under the exact bytes of everything but the id and the raw
contents, and the next request with those bytes is cut into pieces. Answers are put together in the same way. What is
not plain (typed contents, unusual orders of fields, anything damaged) is the general codec's, which
makes the templates and words the errors; both give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Final

from roost.core.requests import InferRequest, InferResponse, RegionSlice, RequestContext, RequestedOutput
from roost.core.tensors import Buffer, ParameterValue, Tensor
from roost.server import grpc_codec as codec
from roost.server.grpc_wire import encode_varint, read_varint

_MODEL_NAME, _MODEL_VERSION, _ID = 0x0A, 0x12, 0x1A  # tags of length-delimited fields
_PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 0x22, 0x2A, 0x32, 0x3A
_RAW_OUTPUT: Final = b"\x32"

_MAX_TEMPLATES: Final = 1024
_MAX_HEAD_BYTES: Final = 8192
_MAX_FIRST_BYTES: Final = _MAX_HEAD_BYTES + 512  # with names and an id
# Contents of larger messages are views on them; of smaller ones copies cost less.
_VIEW_BYTES: Final = 16_384
_NO_REGIONS: Mapping[str, RegionSlice] = {}
_NO_PARAMETERS: Final[dict[str, ParameterValue]] = {}


class _Template:
    """What all requests have in common that begin with the same bytes."""

    __slots__ = ("inputs", "model_name", "model_version", "outputs", "parameters", "priority", "regions", "timeout_s")

    def __init__(self, request: InferRequest) -> None:
        self.model_name = request.model_name
        self.model_version = request.model_version
        # What is in shared memory has no raw contents.
        self.inputs = [
            (item.name, item.datatype, item.shape, item.parameters, item.name in request.regions)
            for item in request.inputs
        ]
        self.regions = request.regions or _NO_REGIONS
        self.outputs: list[RequestedOutput] = request.outputs
        self.parameters = dict(request.parameters)
        self.priority = request.context.priority
        self.timeout_s = request.context.timeout_s


class InferCodec:
    """Decodes requests and encodes answers as ``grpc_codec`` does; what it remembers is bounded."""

    def __init__(self) -> None:
        self._templates: dict[bytes, _Template] = {}
        # Where the raw contents began in a message of this size, without its id: a guess, which saves looking.
        self._ends: dict[int, int] = {}
        self._answers: dict[tuple[object, ...], tuple[bytes, bytes, bytes]] = {}
        self._raw_tags: dict[int, bytes] = {}

    @property
    def memories(self) -> tuple[Sized, ...]:
        """All that it remembers."""
        return self._templates, self._ends, self._answers, self._raw_tags

    def decode_infer(
        self,
        raw: Buffer,
        received: float,
        request_timeout_s: float,
        *,
        caller: str = "",
        traceparent: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> InferRequest:
        """Decodes a ModelInferRequest; see ``grpc_codec.decode_infer``.

        Raises:
            InvalidArgument: If it is not a message, or one that contradicts itself.
        """
        matched = self._match(raw)
        if matched is None:
            return codec.decode_infer(
                raw, received, request_timeout_s, caller=caller, traceparent=traceparent, headers=headers
            )
        template, request_id, inputs = matched
        timeout_s = template.timeout_s
        if not timeout_s or timeout_s > request_timeout_s:
            deadline = received + request_timeout_s
        else:
            deadline = received + timeout_s
        parameters = _NO_PARAMETERS
        if headers or template.parameters:
            parameters = {**template.parameters, **(headers or _NO_PARAMETERS)}
        return InferRequest(
            template.model_name,
            template.model_version,
            RequestContext(
                received,
                deadline,
                caller,
                priority=template.priority,
                traceparent=traceparent,
                timeout_s=timeout_s,
            ),
            inputs,
            template.outputs,
            request_id,
            parameters,
            regions=template.regions,
        )

    def encode_parts(self, response: InferResponse) -> tuple[list[Buffer], int]:
        """Encodes a ModelInferResponse: pieces of it, among them the tensors' own memory, and their size.

        Raises:
            InvalidArgument: If it is larger than a gRPC message can be.
        """
        if response.parameters:
            return codec.encode_parts(response)
        key: list[object] = [response.model_name, response.model_version]
        parts: list[Buffer] = [b""]
        size_bytes = 0
        raw_tags = self._raw_tags
        for tensor in response.outputs:
            if tensor.parameters:
                return codec.encode_parts(response)
            data = tensor.data
            length = data.nbytes if type(data) is memoryview else len(data)
            key += (tensor.name, tensor.datatype, tensor.shape)
            tag = raw_tags.get(length) or self._raw_tag(length)
            parts += (tag, data)
            size_bytes += len(tag) + length
        known = self._answers.get(tuple(key))
        if known is None:
            known = self._describe(tuple(key), response)
        if response.id:
            encoded = response.id.encode()
            parts[0] = b"".join((known[1], b"\x1a", encode_varint(len(encoded)), encoded, known[2]))
        else:
            parts[0] = known[0]
        size_bytes += len(parts[0])
        codec.check_response_size(size_bytes)
        return parts, size_bytes

    def encode_response(self, response: InferResponse) -> bytes:
        """Encodes a ModelInferResponse; see ``grpc_codec.encode_response``.

        Raises:
            InvalidArgument: If it is larger than a gRPC message can be.
        """
        return b"".join(self.encode_parts(response)[0])

    def _match(self, raw: Buffer) -> tuple[_Template, str, list[Tensor]] | None:
        """The template of a message, its id and its inputs; None if it is the general codec's.

        Raises:
            InvalidArgument: If it is a bad one.
        """
        # What is not plain bytes is large, and only its beginning is wanted as bytes.
        first = raw if type(raw) is bytes else bytes(raw[:_MAX_FIRST_BYTES])
        try:
            end = self._ends.get(len(raw) << 8, 0)  # of one without an id
            template = self._templates.get(first[:end])
            if template is not None:
                inputs = _cut(template, raw, end)
                return None if inputs is None else (template, "", inputs)
            at = after = _skip_names(first)
            request_id = ""
            if first[at] == _ID:
                if first[at + 1] > 0x7F:
                    return None
                after += 2 + first[at + 1]
                request_id = str(first[at + 2 : after], "utf-8")
            guess = (len(raw) - after) << 8 | at
            end = after + self._ends.get(guess, 0)
            template = self._templates.get(first[:end] if after == at else first[:at] + first[after:end])
            if template is None:
                end = _skip_descriptions(first, after, len(raw))
                self._remember_end(guess, end - after)
                if after == at:
                    self._remember_end(len(raw) << 8, end)
                template = self._template(raw, first[:at] + first[after:end])
            inputs = _cut(template, raw, end)
        except (IndexError, UnicodeDecodeError):
            return None
        return None if inputs is None or template is None else (template, request_id, inputs)

    def _template(self, raw: Buffer, head: bytes) -> _Template | None:
        """The template of a message that has so much besides its id and contents.

        Raises:
            InvalidArgument: If the message is a bad one.
        """
        known = self._templates.get(head)
        if known is not None or len(head) > _MAX_HEAD_BYTES:
            return known
        message, raws = codec.parse_infer(raw)
        request, _ = codec.read_infer(message, raws, 0.0, math.inf)
        if len(raws) + len(request.regions) != len(request.inputs) or not request.inputs:
            return None
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        template = self._templates[head] = _Template(request)
        return template

    def _remember_end(self, guess: int, length: int) -> None:
        if len(self._ends) >= _MAX_TEMPLATES:
            self._ends.clear()
        self._ends[guess] = length

    def _raw_tag(self, length: int) -> bytes:
        tag = _RAW_OUTPUT + encode_varint(length)
        if len(self._raw_tags) < _MAX_TEMPLATES:
            self._raw_tags[length] = tag
        return tag

    def _describe(self, key: tuple[object, ...], response: InferResponse) -> tuple[bytes, bytes, bytes]:
        """All of an answer but its id and elements: the whole, and what is before and after the id."""
        bare = InferResponse(response.model_name, response.model_version, [])
        before = codec.encode_response(bare)
        outputs = [Tensor(item.name, item.datatype, item.shape, b"") for item in response.outputs]
        bare.outputs = outputs
        whole = bytes(codec.encode_parts(bare)[0][0])
        known = (whole, before, whole[len(before) :])
        if len(self._answers) >= _MAX_TEMPLATES:
            self._answers.clear()
        if len(whole) <= _MAX_HEAD_BYTES:
            self._answers[key] = known
        return known


def _skip_names(raw: bytes) -> int:
    """The end of the model's name and version at the start of a message; they are shorter than 128 bytes.

    Raises:
        IndexError: If they are not there, or the message ends with them.
    """
    if raw[0] != _MODEL_NAME or raw[1] > 0x7F:
        raise IndexError
    at = raw[1] + 2
    if raw[at] == _MODEL_VERSION:
        if raw[at + 1] > 0x7F:
            raise IndexError
        at += raw[at + 1] + 2
    return at


def _skip_descriptions(raw: bytes, at: int, size_bytes: int) -> int:
    """The end of parameters, inputs and outputs that begin at ``at``: where the raw contents do, or the message ends.

    Args:
        raw: The first bytes of the message, or all.
        at: Where to begin.
        size_bytes: How many bytes the message has.

    Raises:
        IndexError: If anything else comes before the raw contents, or this is not all of the message.
    """
    while at != size_bytes and (tag := raw[at]) != _RAW:
        if tag not in (_PARAMETERS, _INPUTS, _OUTPUTS):
            raise IndexError
        length = raw[at + 1]
        if length < 0x80:
            at += length + 2
        else:
            length, at = read_varint(raw, at + 1)
            if at < 0:
                raise IndexError
            at += length
    return at


def _cut(template: _Template | None, raw: Buffer, at: int) -> list[Tensor] | None:
    """The inputs of a message whose raw contents begin at ``at``; None if there are not as many as inputs.

    Raises:
        IndexError: If something else is there than raw contents.
    """
    if template is None:
        return None
    whole = len(raw)
    source: Buffer = raw if whole < _VIEW_BYTES else memoryview(raw)
    inputs: list[Tensor] = []
    for name, datatype, shape, parameters, in_region in template.inputs:
        if in_region:
            inputs.append(Tensor(name, datatype, shape, b"", parameters))
            continue
        if raw[at] != _RAW:
            return None
        length = raw[at + 1]
        if length < 0x80:
            at += 2
        else:
            length, at = read_varint(raw, at + 1)
            if at < 0:
                return None
        inputs.append(Tensor(name, datatype, shape, source[at : at + length], parameters))
        at += length
    return inputs if at == whole else None
