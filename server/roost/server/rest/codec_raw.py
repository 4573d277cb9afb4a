"""Raw requests: a body that is nothing but the only input of its model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from roost.core.errors import InvalidArgument
from roost.core.requests import RequestContext
from roost.core.tensors import DATATYPES, Buffer, Tensor, TensorSpec, element_count, pack_bytes
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest


def decode_raw(
    body: memoryview,
    specs: Sequence[TensorSpec],
    max_batch_size: int,
    *,
    model_name: str,
    model_version: str,
    context: RequestContext,
) -> RestInferRequest:
    """Reads a raw request: the body is the only input of the model, all outputs are answered in binary.

    Args:
        body: The elements.
        specs: The model's inputs, batch dimension included.
        max_batch_size: The model's; over 0 the first dimension is a batch of 1.
        model_name: From the path.
        model_version: From the path, empty if it is not there.
        context: The request's context.

    Raises:
        InvalidArgument: If the model has several inputs, or its shape can't be told from the size.
    """
    if len(specs) != 1:
        raise InvalidArgument(
            f"a raw request's model must only have 1 input, but model '{model_name}' has {len(specs)}: "
            f"set {HEADER_LENGTH} to the size of the JSON part"
        )
    spec = specs[0]
    shape = (1, *spec.shape[1:]) if max_batch_size > 0 else spec.shape
    data: Buffer = body
    if spec.datatype == "BYTES":
        if shape[-1:] != (1,) or any(dim != 1 for dim in shape):
            raise InvalidArgument(
                f"a raw request for model '{model_name}' must have input shape [1] for BYTES, "
                f"but input '{spec.name}' has {list(spec.shape)}"
            )
        data = pack_bytes([bytes(body)])
    else:
        shape = _deduce_shape(spec, shape, len(body), model_name)
    tensor = Tensor(spec.name, spec.datatype, shape, data)
    return RestInferRequest(model_name, model_version, context, [tensor], binary_by_default=True)


def _deduce_shape(spec: TensorSpec, shape: tuple[int, ...], size: int, model_name: str) -> tuple[int, ...]:
    if shape.count(-1) > 1:
        raise InvalidArgument(
            f"the shape of a raw request for model '{model_name}' can't be deduced: "
            f"input '{spec.name}' has more than one variable dimension, {list(spec.shape)}"
        )
    fixed = element_count([dim for dim in shape if dim != -1]) * DATATYPES[spec.datatype].itemsize
    if -1 in shape and fixed and size % fixed == 0:
        return tuple(size // fixed if dim == -1 else dim for dim in shape)
    if -1 in shape or size != fixed:
        expected = f"a multiple of {fixed}" if -1 in shape else f"{fixed}"
        raise InvalidArgument(
            f"input byte size mismatch for input '{spec.name}' for model '{model_name}'. "
            f"Expected {expected}, got {size}"
        )
    return shape
