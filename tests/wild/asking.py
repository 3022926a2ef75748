"""A served model as a function: each call is a request over HTTP with binary tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype

from demi.tensors import Feeds
from tests.wild.task import Run


@contextmanager
def asked(address: str, model: str) -> Iterator[Run]:
    """Return a function that calls a model of a server; its inputs come from the server's metadata."""
    client = triton.InferenceServerClient(address)
    names = [spec["name"] for spec in client.get_model_metadata(model)["inputs"]]

    def run(feeds: Feeds) -> Feeds:
        answer = client.infer(model, [_tensor(name, feeds[name]) for name in names])
        return {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}

    try:
        yield run
    finally:
        client.close()


def _tensor(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
