"""MLServer runtime: one run of ONNX Runtime per batch that MLServer has joined."""

# mypy: ignore-errors

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    """Runtime class named in the model settings."""

    async def load(self) -> bool:
        """Open the session."""
        parameters = self.settings.parameters
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.extra["threads"])
        self.session = onnxruntime.InferenceSession(parameters.uri, options, providers=["CPUExecutionProvider"])
        self.names = [tensor.name for tensor in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        """Run the session once."""
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        results = self.session.run(self.names, feeds)
        outputs = [NumpyCodec.encode_output(name, values) for name, values in zip(self.names, results, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
