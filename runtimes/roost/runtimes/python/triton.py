"""Calls models that were written for Triton: classes of the name ``TritonPythonModel``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from roost.core.errors import Code, Internal, InvalidArgument, RoostError, error_of
from roost.core.tensors import Tensor as WireTensor
from roost.runtimes.python import triton_utils as pb_utils
from roost.runtimes.python.contract import Answers, signature_of_config
from roost.runtimes.python.job import Job
from roost.runtimes.python.opening import INSTANCE_KIND, TRITON_CLASS, Order
from roost.runtimes.python.triton_calls import DEADLINE_NS
from roost.runtimes.python.trouble import load_error

_CODES = {
    pb_utils.TritonError.UNKNOWN: Code.INTERNAL,
    pb_utils.TritonError.INTERNAL: Code.INTERNAL,
    pb_utils.TritonError.NOT_FOUND: Code.NOT_FOUND,
    pb_utils.TritonError.INVALID_ARG: Code.INVALID_ARGUMENT,
    pb_utils.TritonError.UNAVAILABLE: Code.UNAVAILABLE,
    pb_utils.TritonError.UNSUPPORTED: Code.UNIMPLEMENTED,
    pb_utils.TritonError.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    pb_utils.TritonError.CANCELLED: Code.CANCELLED,
}
_CONSUMED = frozenset({"sequence_id", "sequence_start", "sequence_end"})
"""Parameters that models find in other places of a request, as in Triton."""

_NO_ANSWER = "execute has answered a request neither with a response nor through its response sender"


class TritonModel:
    """One model of a class that is called ``TritonPythonModel``.

    Args:
        cls: The class.
        order: What is to be served.

    Raises:
        RoostError: If it can't be used.
    """

    def __init__(self, cls: Any, order: Order) -> None:
        self._order = order
        self._config = _completed(cls, order)
        self.signature = signature_of_config(self._config)
        if not self.signature.inputs or not self.signature.outputs:
            raise InvalidArgument("neither the configuration nor auto_complete_config lists inputs and outputs")
        self._answers = Answers(self.signature.outputs)
        if not callable(getattr(cls, "execute", None)):
            raise InvalidArgument(f"{TRITON_CLASS} has no method execute")
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(cls.execute))
        try:
            self._model = cls()
        except BaseException as error:
            raise load_error(error, order.root, TRITON_CLASS) from None

    def load(self) -> None:
        """See ``Served``."""
        order = self._order
        initialize = getattr(self._model, "initialize", None)
        if initialize is None:
            return
        initialize(
            {
                "model_config": json.dumps(self._config),
                "model_instance_kind": order.options.get(INSTANCE_KIND, "CPU"),
                "model_instance_name": f"{order.name}_0_0",
                "model_instance_device_id": "0",
                "model_repository": order.model_folder,
                "model_version": order.version,
                "model_name": order.name,
            }
        )

    def unload(self) -> None:
        """See ``Served``."""
        finalize = getattr(self._model, "finalize", None)
        if finalize is not None:
            finalize()

    def run(self, job: Job) -> None:
        """See ``Served``."""
        request = self._request(job)
        DEADLINE_NS.set(job.handle.deadline_ns)
        job.handle.begin_infer()
        self._answer(job, request, self._model.execute([request]))

    async def run_async(self, job: Job) -> None:
        """See ``Served``."""
        request = self._request(job)
        DEADLINE_NS.set(job.handle.deadline_ns)
        job.handle.begin_infer()
        self._answer(job, request, await self._model.execute([request]))

    def _request(self, job: Job) -> pb_utils.InferenceRequest:
        parameters = job.handle.parameters
        flags = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if parameters.get("sequence_start") else 0
        flags |= pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if parameters.get("sequence_end") else 0
        sequence = parameters.get("sequence_id", 0)
        request = pb_utils.InferenceRequest(
            request_id=job.id,
            correlation_id=sequence if isinstance(sequence, int | str) else 0,
            inputs=[pb_utils.Tensor(name, array) for name, array in job.inputs().items()],
            requested_output_names=job.wanted or [spec.name for spec in self.signature.outputs],
            model_name=self._order.name,
            model_version=int(self._order.version) if self._order.version.isdigit() else -1,
            flags=flags,
            parameters={name: value for name, value in parameters.items() if name not in _CONSUMED},
        )
        request._sender = Sender(job, self._answers)
        return request

    def _answer(self, job: Job, request: pb_utils.InferenceRequest, given: object) -> None:
        """Answers with what ``execute`` has returned; what has a sender may be answered by that, now or later."""
        sender = request._sender
        assert sender is not None
        responses = [None] if given is None else given
        if not isinstance(responses, Sequence) or len(responses) != 1:
            raise Internal("execute has to return a list with one response for each request")
        response = responses[0]
        if response is None:
            if not sender.taken:
                raise Internal(_NO_ANSWER)
            return
        if job.decoupled:
            raise Internal("a decoupled model answers through response senders, and execute returns None")
        job.handle.end_infer()
        sender.deliver(response, is_final=True)


class Sender:
    """Answers one request, from whichever thread; see ``InferenceResponseSender`` of Triton.

    Args:
        job: The run.
        answers: What the model gives.

    Attributes:
        taken: Whether the model has asked for it.
    """

    def __init__(self, job: Job, answers: Answers) -> None:
        self._job = job
        self._answers = answers
        self._is_closed = False
        self.taken = False

    def send(self, response: pb_utils.InferenceResponse | None = None, flags: int = 0) -> None:
        """Sends a response; with ``TRITONSERVER_RESPONSE_COMPLETE_FINAL`` the last one, or none.

        Blocks while the client has not taken enough of those sent before.

        Raises:
            TritonModelException: If the last one was sent before.
        """
        if self._is_closed:
            raise pb_utils.TritonModelException("the response sender has sent its final response")
        try:
            self.deliver(response, is_final=bool(flags & pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL))
        except RoostError as error:
            self._job.fail(error)  # a stream that nobody waits for, or that can't go on
            if error.code is not Code.CANCELLED:
                raise pb_utils.TritonModelException(error.message) from None

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._job.handle.cancelled

    def deliver(self, response: pb_utils.InferenceResponse | None, *, is_final: bool) -> None:
        """The same for a response that the model does not send itself.

        Raises:
            RoostError: If it is not what it should be, or nobody waits for it.
        """
        job = self._job
        self._is_closed = is_final
        if job.is_over:
            return
        if response is None:
            if not is_final:
                raise Internal("a response or the flag of the final one is missing")
            if job.decoupled:
                job.end()
                return
            raise Internal(_NO_ANSWER)
        if not isinstance(response, pb_utils.InferenceResponse):
            raise Internal(f"a response is a {type(response).__name__}, not an InferenceResponse")
        error = response.error()
        if error is not None:
            job.fail(error_of(_CODES.get(error.code(), Code.INTERNAL), error.message()))
            return
        outputs = self._tensors(response)
        if is_final or not job.decoupled:
            job.end(outputs)
        else:
            job.wait_for_credit(outputs)
            job.emit(outputs)

    def _tensors(self, response: pb_utils.InferenceResponse) -> list[WireTensor]:
        given = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        outputs = self._answers.tensors(given, self._job.wanted, may_miss=self._job.decoupled)
        if not outputs:
            raise Internal("the model gave a response without outputs")
        return outputs

    def __del__(self) -> None:
        """A model that drops it without a final response would let the client wait for ever."""
        if not self._is_closed and not self._job.is_over:
            self._job.fail(Internal(_NO_ANSWER))


def _completed(cls: Any, order: Order) -> dict[str, Any]:
    """The configuration, with what the class adds."""
    configured = order.config
    complete = getattr(cls, "auto_complete_config", None)
    if complete is None:
        return configured
    try:
        completed: dict[str, Any] = complete(pb_utils.ModelConfig(configured)).as_dict()
    except BaseException as error:
        raise load_error(error, order.root, "auto_complete_config") from None
    decouples = pb_utils.using_decoupled_model_transaction_policy
    if decouples(completed) and not decouples(configured):
        raise InvalidArgument(
            "auto_complete_config calls the model decoupled, which the configuration has to say: "
            "model_transaction_policy { decoupled: true }"
        )
    return completed
