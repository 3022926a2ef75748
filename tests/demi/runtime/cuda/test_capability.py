"""Capabilities of a GPU and its driver, checked before a runtime fails."""

import sys

import pytest

from demi.errors import DeviceError, PackageError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda, Gpu, find_gpu, require_cuda
from demi.runtime.cuda.capability import (
    LIBRARIES,
    check_gpu,
    lacks_cudnn,
    missing_libraries,
    why_not_faster,
)
from demi.runtime.options import SessionSettings, cuda_options
from tests.fake_cuda import FakeCudart

GPU = Device("cuda", 1)


def gpu_of(capability=(9, 0), driver=(13, 0)):
    return Gpu("Fake GPU", capability, driver, 8 << 30)


class TestDescribe:
    """Properties of a GPU, as the CUDA runtime reports them."""

    def test_a_gpu(self):
        """The description has name, compute capability, the driver's CUDA version and the memory."""
        assert (
            Gpu("Fake GPU", (8, 6), (13, 2), 8 << 30)
            == Cuda(GPU, FakeCudart(capability=(8, 6), driver=13020)).describe()
        )

    def test_an_index_beyond_the_last(self):
        """The error states the number of GPUs."""
        with pytest.raises(DeviceError, match="`cuda:1` was requested, but this machine has 1 GPU\n"):
            Cuda(GPU, FakeCudart(gpus=1)).describe()

    @pytest.mark.parametrize("code", [35, 100])
    def test_no_driver(self, code):
        """A missing or outdated driver raises DeviceError with the version to install."""
        with pytest.raises(DeviceError, match="`cuda:1` cannot be used") as caught:
            Cuda(GPU, FakeCudart(failures={"cudaGetDeviceCount": code})).describe()
        assert "r580" in caught.value.hint

    def test_memory(self):
        """Free and total memory are in bytes."""
        assert (6 << 30, 8 << 30) == Cuda(GPU, FakeCudart()).memory()

    def test_finding_none(self):
        """`find_gpu` returns None if there is no GPU."""
        assert find_gpu(GPU, FakeCudart(gpus=0)) is None
        assert find_gpu(GPU, FakeCudart()) is not None

    def test_without_the_bindings(self, monkeypatch):
        """Without CUDA's bindings no GPU is found, and code that needs them raises an error that names the extra."""
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.raises(PackageError, match="cuda-bindings") as caught:
            require_cuda()

        assert "[gpu]" in caught.value.hint
        assert find_gpu(GPU) is None


class TestCheck:
    """Checks that refuse what cannot work."""

    @pytest.mark.parametrize(
        ("gpu", "why"),
        [
            (gpu_of(driver=(12, 4)), r"driver supports CUDA 12\.4, but CUDA 13\.0 is needed"),
            (gpu_of((5, 2)), "no FP16 arithmetic"),
            (gpu_of((7, 0)), "older than CUDA 13 supports"),
        ],
    )
    def test_too_old(self, gpu, why):
        """An old driver or GPU is named, with the required version."""
        with pytest.raises(DeviceError, match=why) as caught:
            check_gpu(gpu, GPU)
        assert "--device cpu" in caught.value.hint

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)])
    def test_new_enough(self, capability):
        """Turing and later GPUs pass."""
        check_gpu(gpu_of(capability), GPU)


@pytest.mark.parametrize(
    ("gpu", "precision", "why"),
    [
        (None, "fp16", "no GPU was found"),
        (gpu_of((6, 1)), "fp16", "no tensor cores"),
        (gpu_of((7, 5)), "bf16", "no bfloat16 arithmetic"),
        (gpu_of((7, 5)), "fp16", None),
        (gpu_of((9, 0)), "bf16", None),
    ],
)
def test_warning_where_half_is_not_faster(gpu, precision, why):
    """A CPU and old GPUs get a warning that half is not faster."""
    said = why_not_faster(gpu, precision)

    assert said is None if why is None else why in said


def test_missing_libraries_are_named_with_what_brings_them():
    """Each library that cannot be loaded is named with the package that contains it."""

    def load(name):
        if "cublas" in name:
            raise OSError("cannot open shared object file")

    assert ["libcublasLt.so.13 (nvidia-cublas)", "libcublas.so.13 (nvidia-cublas)"] == missing_libraries(load)
    assert [] == missing_libraries(lambda name: None)
    assert "libcuda.so.1" == LIBRARIES[0][0]


class TestOptions:
    """Options of ONNX Runtime's CUDA provider."""

    def test_fp32_without_tf32(self):
        """TF32 is always off, so that FP32 is computed in FP32."""
        every = SessionSettings(nhwc=True, graph_rows=8, memory_bytes=1 << 30)

        assert "0" == cuda_options(GPU, SessionSettings())["use_tf32"] == cuda_options(GPU, every)["use_tf32"]

    @pytest.mark.parametrize(
        ("settings", "options"),
        [
            (SessionSettings(), {}),
            (SessionSettings(nhwc=True), {"prefer_nhwc": "1"}),
            (SessionSettings(graph_rows=8), {"enable_cuda_graph": "1"}),
            (
                SessionSettings(memory_bytes=2 << 30),
                {"gpu_mem_limit": str(2 << 30), "arena_extend_strategy": "kSameAsRequested"},
            ),
        ],
    )
    def test_each_setting_is_its_options(self, settings, options):
        """A setting adds its own options and changes no others."""
        assert cuda_options(GPU, SessionSettings()) | options == cuda_options(GPU, settings)


def test_operators_that_need_cudnn():
    """Convolutions and recurrent layers need cuDNN; a transformer does not."""

    def load(name):
        raise OSError(name)

    assert lacks_cudnn({"Conv", "Relu"}, load)
    assert not lacks_cudnn({"MatMul"}, load)
    assert not lacks_cudnn({"LSTM"}, lambda name: None)
