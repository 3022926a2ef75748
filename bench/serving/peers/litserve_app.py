"""LitServe application: `litserve_app.py MODEL PORT THREADS ROWS`."""

# mypy: ignore-errors

import sys

import litserve
import numpy as np
import onnxruntime

MODEL, PORT, THREADS, ROWS = sys.argv[1], *map(int, sys.argv[2:5])


class OnnxAPI(litserve.LitAPI):
    """Accepts one row as lists by input name, and answers with lists by output name."""

    def setup(self, device):
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.types = {
            each.name: {"tensor(int64)": np.int64, "tensor(float16)": np.float16}.get(each.type, np.float32)
            for each in self.session.get_inputs()
        }
        self.names = [each.name for each in self.session.get_outputs()]

    def decode_request(self, request):
        """Return the arrays of one row."""
        return {name: np.asarray(request[name], kind) for name, kind in self.types.items()}

    def batch(self, inputs):
        """Join rows into a batch."""
        return {name: np.stack([each[name] for each in inputs]) for name in self.types}

    def predict(self, feeds):
        """Run the session once."""
        return dict(zip(self.names, self.session.run(self.names, feeds), strict=True))

    def unbatch(self, output):
        """Split the outputs into rows."""
        rows = len(next(iter(output.values())))
        return [{name: values[row] for name, values in output.items()} for row in range(rows)]

    def encode_response(self, output):
        """Return one row as lists."""
        return {name: values.tolist() for name, values in output.items()}


if __name__ == "__main__":
    api = OnnxAPI(max_batch_size=ROWS, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)
