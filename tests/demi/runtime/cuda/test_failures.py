"""Fatal GPU failures, recognized by CUDA's codes and in ONNX Runtime's messages."""

from __future__ import annotations

import pytest

from demi.errors import DeviceLostError, InferenceError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.failures import STICKY, run_failure
from tests.fake_cuda import FakeCudart

WORDS = "ONNX Runtime failed: CUDA failure %d: an error was encountered ; GPU=0 ; hostname=h ; file=f ; line=1 ; expr=x"


@pytest.mark.parametrize(("code", "lost"), [*((code, True) for code in sorted(STICKY)), (2, False), (701, False)])
def test_messages_of_the_runtime(code, lost):
    """An illegal address is fatal; too little memory, or a launch that needs too many resources, is not."""
    failure = run_failure(WORDS % code)

    assert lost is isinstance(failure, DeviceLostError)
    assert isinstance(failure, InferenceError)
    assert lost is bool(failure.hint)


@pytest.mark.parametrize(
    ("name", "lost"),
    [("cudaErrorIllegalAddress", True), ("cudaErrorLaunchFailure", True), ("cudaErrorInvalidValue", False)],
)
def test_messages_after_a_kernel(name, lost):
    """After a kernel ONNX Runtime reports an error's name instead of its number."""
    failure = run_failure(
        f"Non-zero status code returned while running Add node. Status Message: CUDA error {name}:no luck"
    )

    assert lost is isinstance(failure, DeviceLostError)


@pytest.mark.parametrize(
    "words",
    [
        WORDS.replace("an error was encountered", "out of memory") % 2,
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "Status Message: BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 4294967296",
        "Available memory of 1048576 is smaller than requested bytes of 4194304",
    ],
)
def test_out_of_memory(words):
    """Out-of-memory messages of CUDA, its libraries and ONNX Runtime's arena all get the same hint."""
    failure = run_failure(words)

    assert type(failure) is InferenceError
    assert "--max-batch" in failure.hint


def test_other_messages():
    """Any other message is an error of the request."""
    assert type(run_failure("ONNX Runtime failed: 700 rows do not fit")) is InferenceError


@pytest.mark.parametrize(("code", "kind"), [(700, DeviceLostError), (719, DeviceLostError), (1, InferenceError)])
def test_codes_of_cuda(code, kind):
    """A call that fails with a fatal code raises an error that asks for a restart."""
    cuda = Cuda(Device("cuda"), FakeCudart(failures={"cudaStreamSynchronize": code}))
    with pytest.raises(InferenceError) as caught:
        cuda.wait(0)

    assert kind is type(caught.value)
