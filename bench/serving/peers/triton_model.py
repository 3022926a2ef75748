"""Model of Triton's Python backend: joins the requests of a batch into one run of ONNX Runtime."""

# mypy: ignore-errors
# ruff: noqa: E402

import json
import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # ignored by the backend's interpreter otherwise

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Class that the backend loads."""

    def initialize(self, args):
        """Open the session."""
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(given["threads"])
        self.session = onnxruntime.InferenceSession(given["model"], options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Run the session once for all requests."""
        parts = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        rows = np.cumsum([len(part[self.inputs[0]]) for part in parts])[:-1]
        feeds = {name: np.concatenate([part[name] for part in parts]) for name in self.inputs}
        results = [np.split(values, rows) for values in self.session.run(self.outputs, feeds)]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, values) for name, values in zip(self.outputs, found, strict=True)]
            )
            for found in zip(*results, strict=True)
        ]
