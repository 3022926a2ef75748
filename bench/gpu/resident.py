"""An ONNX Runtime session whose inputs and outputs stay on the device, so that only the model is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demi.tensors import Feeds


class Resident:
    """A model on a device: `load` copies the inputs there, `run` runs it to its end. Never falls back to the CPU."""

    def __init__(self, model: Path, device: str, *, tf32: bool = False) -> None:
        import onnxruntime

        self._ort, self._device = onnxruntime, device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=self._providers(tf32), enable_fallback=0
        )
        if device != "cpu" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError("ONNX Runtime's CUDA provider did not load")
        self._binding: Any = None

    def load(self, feeds: Feeds) -> Resident:
        """Copy the inputs to the device, in the model's types."""
        self._binding = self._session.io_binding()
        types = {node.name: node.type for node in self._session.get_inputs()}
        for name, array in feeds.items():
            array = array.astype("float16") if types[name] == "tensor(float16)" else array
            value = self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            self._binding.bind_ortvalue_input(name, value)
        for node in self._session.get_outputs():
            self._binding.bind_output(node.name, self._device, 0)
        return self

    def run(self) -> None:
        """Run the model to its end."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def _providers(self, tf32: bool) -> list[Any]:
        if self._device == "cpu":
            return ["CPUExecutionProvider"]
        if hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()
        options = {"device_id": "0", "use_tf32": str(int(tf32)), "cudnn_conv_algo_search": "HEURISTIC"}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
