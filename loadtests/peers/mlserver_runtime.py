"""An inference runtime of MLServer that runs an ONNX model."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Runs the file that ``parameters.uri`` names."""

    async def load(self) -> bool:
        """Loads the model, with one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers a request."""
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        values = self._session.run(self._outputs, feed)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self._outputs, values, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
