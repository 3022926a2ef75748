"""Model of Triton's Python backend: joins the requests of a batch into one run of OpenVINO, compiled as Demi compiles it."""

# mypy: ignore-errors
# ruff: noqa: E402

import json
import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # ignored by the backend's interpreter otherwise

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Class that the backend loads."""

    def initialize(self, args):
        """Compile the model."""
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        core = openvino.Core()
        compiled = core.compile_model(given["model"], "CPU", json.loads(given["options"]))
        self.request = compiled.create_infer_request()
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Run the model once for all requests."""
        parts = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        rows = np.cumsum([len(part[self.inputs[0]]) for part in parts])[:-1]
        feeds = {name: np.concatenate([part[name] for part in parts]) for name in self.inputs}
        found = self.request.infer(feeds)
        results = [np.split(np.array(found[name]), rows) for name in self.outputs]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, values) for name, values in zip(self.outputs, each, strict=True)]
            )
            for each in zip(*results, strict=True)
        ]
