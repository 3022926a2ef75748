"""Devices and ONNX Runtime sessions: missing parts raise errors, and no other device is used silently."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from demi.errors import (
    DeviceError,
    InferenceError,
    InputError,
    PackageError,
    SourceError,
    TensorError,
)
from demi.runtime.base import CPU, Device
from demi.runtime.cores import usable_cores
from demi.runtime.cuda import capability
from demi.runtime.onnxruntime.session import (
    SessionSettings,
    empty_feeds,
    installed_twice,
    open_session,
    require_runtime,
    runtime_version,
)
from demi.tensors import DType, TensorSpec
from tests.fake_cuda import FakeCudart
from tests.fakes import FakeRuntime, FakeSession, packages_in
from tests.models import MLP, OVERFLOW, SHAPED, parse, text

no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="ONNX Runtime is built with CUDA here"
)


class TestDevice:
    """`--device`."""

    @pytest.mark.parametrize(
        ("name", "device"),
        [
            ("cpu", CPU),
            ("CPU ", CPU),
            ("cuda", Device("cuda", 0)),
            ("cuda:0", Device("cuda", 0)),
            ("cuda:12", Device("cuda", 12)),
        ],
    )
    def test_good(self, name, device):
        """A device is the CPU, or a GPU with its index."""
        assert device == Device.parse(name)

    @pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:a", "cuda:1:2", "tpu"])
    def test_bad(self, name):
        """Any other text is quoted."""
        with pytest.raises(InputError, match=f"unknown device `{name}`"):
            Device.parse(name)

    @pytest.mark.parametrize("name", ["cpu", "cuda:0", "cuda:3"])
    def test_text_of_a_device_is_read_back(self, name):
        """The text of a device is accepted on the command line."""
        assert name == str(Device.parse(name))


class TestOpenSession:
    """Loading a model."""

    def test_file_and_bytes(self, tmp_path):
        """A model loads from its file and from its bytes."""
        (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))

        from_file, from_bytes = open_session(tmp_path / "m.onnx"), open_session(text(parse(MLP)))

        assert from_file.inputs == from_bytes.inputs

    def test_no_outputs(self):
        """A run without outputs returns none; for ONNX Runtime, an empty list stands for all."""
        session = open_session(text(parse(MLP)))

        assert {} == session.run(empty_feeds(session.inputs), [])

    def test_specs(self):
        """A session lists its inputs, outputs and device."""
        session = open_session(text(parse(MLP)))

        assert (TensorSpec("x", DType.FP32, ("batch", 4)),) == session.inputs
        assert (TensorSpec("y", DType.FP32, ("batch", 2)),) == session.outputs
        assert CPU == session.device
        assert [] == session.nodes_on_cpu()

    def test_unnamed_free_axes_get_names(self):
        """A free axis without a name is named after its input and position."""
        session = open_session(text(parse("unnamed (float[?, 2] x) => (float[?, 2] y) { y = Relu(x) }")))

        assert ("x_axis0", 2) == session.inputs[0].shape

    @pytest.mark.parametrize("model", [b"", b"garbage", b"\x08" * 100], ids=["empty", "text", "bytes"])
    def test_bytes_that_are_not_a_model(self, model):
        """Bytes that ONNX Runtime cannot read raise SourceError."""
        with pytest.raises(SourceError, match="cannot load the model"):
            open_session(model)

    def test_file_that_is_not_a_model(self, tmp_path):
        """A file that cannot be read is named."""
        (tmp_path / "m.onnx").write_bytes(b"garbage")
        with pytest.raises(SourceError, match="cannot load the model") as caught:
            open_session(tmp_path / "m.onnx")
        assert str(tmp_path / "m.onnx") == caught.value.where

    def test_operators_without_a_kernel(self):
        """Operators that the CPU cannot compute are named, with a hint."""
        source = "m (float[n] x) => (float[n] y) { a = Cast <to = 16> (x) b = Mul(a, a) y = Cast <to = 1> (b) }"
        with pytest.raises(SourceError, match="NOT_IMPLEMENTED") as caught:
            open_session(text(parse(source)))

        assert "hardly any for bfloat16" in caught.value.hint

    def test_missing_file(self, tmp_path):
        """A missing file raises SourceError."""
        with pytest.raises(SourceError, match="cannot load the model"):
            open_session(tmp_path / "none.onnx")

    def test_inputs_that_are_not_tensors(self):
        """A model that takes a sequence cannot be served, and its input is named."""
        model = "sequences (seq(float[n]) xs) => (float[n] y) <int64 first = {0}> { y = SequenceAt(xs, first) }"
        with pytest.raises(TensorError, match="`xs` is a seq"):
            open_session(text(parse(model)))

    @no_cuda
    def test_cuda_without_cuda(self):
        """A GPU that does not exist raises an error with a hint; the CPU is not used instead."""
        with pytest.raises(DeviceError, match="`cuda:1` was requested") as caught:
            open_session(text(parse(MLP)), Device("cuda", 1))
        assert "--device cpu" in caught.value.hint
        assert 3 == caught.value.exit_code


class TestCuda:
    """Sessions on a fake GPU, or on one with a fault."""

    @pytest.fixture
    def machine(self, monkeypatch):
        """Install a fake ONNX Runtime."""

        def be(cudart=None, **fields):
            runtime = FakeRuntime(**fields)
            monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
            monkeypatch.setitem(sys.modules, "cuda.bindings", cudart and SimpleNamespace(runtime=cudart))
            return runtime

        return be

    def test_session_on_a_gpu(self, machine):
        """The GPU's provider comes first, without TF32 and without fallback to the CPU."""
        runtime = machine()
        session = open_session(b"", Device("cuda", 1))
        asked = runtime.sessions[0].asked
        (provider, options), rest = asked.providers[0], asked.providers[1:]

        assert Device("cuda", 1) == session.device
        assert ("CUDAExecutionProvider", ["CPUExecutionProvider"]) == (provider, rest)
        assert ("1", "0") == (options["device_id"], options["use_tf32"])
        assert 0 == asked.enable_fallback
        assert 1 == runtime.preloaded

    def test_stdout_is_for_results(self, machine, capsys):
        """ONNX Runtime's output while it loads CUDA is redirected to stderr, because stdout is for results."""
        machine()
        open_session(b"", Device("cuda"))
        captured = capsys.readouterr()

        assert ("", True) == (captured.out, "libcufft" in captured.err)

    def test_nodes_on_cpu(self, machine):
        """Nodes that a GPU session runs on the CPU are named, by their operator if they have no name."""
        machine()

        assert ["NonZero"] == open_session(b"", Device("cuda")).nodes_on_cpu()

    def test_strict_device(self, machine):
        """A strict session refuses a model with nodes on the CPU, and names them."""
        machine()
        with pytest.raises(DeviceError, match="1 nodes would run on the CPU beside cuda:0: NonZero"):
            open_session(b"", Device("cuda"), SessionSettings(strict_device=True))

    def test_shape_nodes_are_accepted(self, machine, tmp_path):
        """Strict sessions accept shape nodes, which ONNX Runtime places on the CPU on purpose, from a file or bytes."""
        machine(on_cpu=["first", "rows", "shape"], on_gpu=["size", "y"])
        (tmp_path / "m.onnx").write_bytes(text(parse(SHAPED)))
        for model in (text(parse(SHAPED)), tmp_path / "m.onnx"):
            session = open_session(model, Device("cuda"), SessionSettings(strict_device=True))

            assert ["first", "rows", "shape"] == session.nodes_on_cpu()
            assert [] == session.unexpected_on_cpu(model)

    def test_other_nodes_on_the_cpu_are_named(self, machine):
        """Beside shape nodes, only the others are named."""
        machine(on_cpu=["first", "rows", "shape", "y"], on_gpu=["size"])
        with pytest.raises(DeviceError, match="1 nodes would run on the CPU beside cuda:0: y"):
            open_session(text(parse(SHAPED)), Device("cuda"), SessionSettings(strict_device=True))

    def test_operators(self, machine):
        """A GPU session lists its operators, wherever they run."""
        machine()

        assert {"Add", "NonZero"} == open_session(b"", Device("cuda")).operators()

    def test_tensors_are_bound_with_cudas_bindings(self, machine):
        """With CUDA's bindings, inputs are copied to the device before their run; without, a warning is logged."""
        machine(FakeCudart())
        bound = open_session(b"", Device("cuda"))
        machine()

        assert bound._binder is not None
        assert open_session(b"", Device("cuda"))._binder is None

    def test_old_gpu(self, machine):
        """An old GPU is refused before a model is loaded."""
        runtime = machine(FakeCudart(capability=(6, 1)))
        with pytest.raises(DeviceError, match="older than CUDA 13 supports"):
            open_session(b"", Device("cuda"))
        assert [] == runtime.sessions

    def test_graphs_need_bound_tensors(self, machine):
        """Without CUDA's bindings no tensor has a fixed address, so that nothing is captured."""
        runtime = machine()
        open_session(b"", Device("cuda"), SessionSettings(graph_rows=8))

        assert "enable_cuda_graph" not in runtime.sessions[0].asked.providers[0][1]

    @pytest.mark.parametrize(("version", "records"), [("1.30.2", False), ("1.31.0", True), ("2.0.0", True)])
    def test_graphs_need_onnx_runtime_1_31(self, machine, monkeypatch, caplog, version, records):
        """ONNX Runtime before 1.31 replays some kernels with stale host memory, so that graphs are off."""
        runtime = machine(FakeCudart())
        monkeypatch.setattr(runtime, "__version__", version)
        open_session(b"", Device("cuda"), SessionSettings(graph_rows=8))

        assert records is ("enable_cuda_graph" in runtime.sessions[0].asked.providers[0][1])
        assert records is ("install 1.31 or newer" not in caplog.text)

    def test_no_graph_if_an_input_is_read_on_the_host(self, machine, caplog):
        """A model that reads an input on the host has no graph, because replays would read the first run's values."""
        runtime = machine(FakeCudart(), memory="Cpu")
        open_session(b"", Device("cuda"), SessionSettings(graph_rows=8))

        assert ["enable_cuda_graph" in each.asked.providers[0][1] for each in runtime.sessions] == [True, False]
        assert "input `x` is read in host memory" in caplog.text

    def test_a_model_that_cannot_be_captured(self, machine, caplog):
        """A model that cannot be captured runs without graphs, and the reason is logged."""
        runtime = machine(FakeCudart(), graphs=False)
        open_session(b"", Device("cuda"), SessionSettings(graph_rows=8))

        assert "enable_cuda_graph" not in runtime.sessions[0].asked.providers[0][1]
        assert "no CUDA graphs for this model" in caplog.text

    def test_provider_that_does_not_load(self, machine):
        """If CUDA's libraries are missing, ONNX Runtime silently creates a CPU session, which is an error here."""
        machine(loads=["CPUExecutionProvider"])
        with pytest.raises(DeviceError, match=r"the CUDA provider could not be loaded: \S"):
            open_session(b"", Device("cuda"))

    def test_convolutions_without_cudnn(self, machine, monkeypatch):
        """Missing cuDNN raises an error at load, with the package to install, instead of failing at the first run."""
        monkeypatch.setattr(capability, "_loads", lambda load, name: "cudnn" not in name)
        machine(operator="Conv")
        with pytest.raises(DeviceError, match=r"need cuDNN, which is missing: libcudnn\.so\.9 \(nvidia-cudnn-cu13\)"):
            open_session(b"", Device("cuda"))

    def test_every_option_is_known(self, machine):
        """The provider accepts every option; with an unknown one there would be no GPU session."""
        machine(FakeCudart())
        settings = SessionSettings(memory_bytes=1 << 30, nhwc=True, graph_rows=4)

        assert Device("cuda") == open_session(b"", Device("cuda"), settings).device

    def test_provider_that_cannot_be_made(self, machine):
        """Without a GPU, or with an old driver, the error has ONNX Runtime's message and a hint."""
        machine(failure="CUDA failure 100: no CUDA-capable device is detected")
        with pytest.raises(DeviceError, match="no CUDA-capable device") as caught:
            open_session(b"", Device("cuda"))
        assert "nvidia-smi" in caught.value.hint

    def test_out_of_memory(self, machine):
        """Exhausted memory is reported as such, and not as an error of the model or the driver."""
        machine(failure="Failed to allocate memory for requested buffer of size 4294967296")
        with pytest.raises(DeviceError, match="out of memory on cuda:0 while loading the model") as caught:
            open_session(b"", Device("cuda"))
        assert "--device-memory" in caught.value.hint

    def test_bad_model_on_a_gpu(self, machine):
        """A model that cannot be loaded on a GPU raises SourceError as well."""
        machine(failure="INVALID_PROTOBUF : Load model failed")
        with pytest.raises(SourceError, match="Load model failed"):
            open_session(b"", Device("cuda"))

    def test_build_without_cuda(self, machine):
        """A build without CUDA raises an error before anything is loaded."""
        runtime = machine(available=["CPUExecutionProvider"])
        with pytest.raises(DeviceError, match="built without CUDA"):
            open_session(b"", Device("cuda"))
        assert [] == runtime.sessions


class TestRun:
    """Running a model."""

    def test_outputs_by_name(self):
        """All outputs are returned by name, or the requested ones."""
        session = open_session(text(parse("two (float[n] x) => (float[n] a, float[n] b) { a = Neg(x) b = Abs(x) }")))
        feeds = {"x": np.float32([-2])}

        assert {"a": [2.0], "b": [2.0]} == {name: array.tolist() for name, array in session.run(feeds).items()}
        assert ["b"] == list(session.run(feeds, ["b"]))

    @pytest.mark.parametrize(
        "feeds",
        [{}, {"x": np.zeros((1, 5), np.float32)}, {"x": np.zeros((1, 4))}, {"z": np.zeros((1, 4), np.float32)}],
        ids=["missing", "shape", "dtype", "name"],
    )
    def test_failures_are_one_line(self, feeds):
        """A failed run raises InferenceError with the runtime's message on one line."""
        with pytest.raises(InferenceError, match="ONNX Runtime failed: ") as caught:
            open_session(text(parse(MLP))).run(feeds)
        assert "\n" not in caught.value.message

    def test_faithful_sessions_answer_as_others_do(self):
        """A faithful session has the same outputs for a plain FP32 model."""
        feeds = {"x": np.float32([3.0, 4.0])}
        plain = open_session(text(parse(OVERFLOW))).run(feeds)
        faithful = open_session(text(parse(OVERFLOW)), settings=SessionSettings(threads=1, faithful=True)).run(feeds)

        np.testing.assert_allclose(plain["y"], faithful["y"], rtol=1e-6)

    def test_zero_inputs_fit(self):
        """Zeros of the right shapes and dtypes suffice to test that a model runs."""
        session = open_session(text(parse(MLP)))

        assert (3, 2) == session.run(empty_feeds(session.inputs, free=3))["y"].shape


class TestInstalledTwice:
    """onnxruntime and onnxruntime-gpu, which share one folder."""

    def test_both(self):
        """Both packages are named if both are installed."""
        both = packages_in({"onnxruntime": "/site", "onnxruntime-gpu": "/site"})

        assert ("onnxruntime", "onnxruntime-gpu") == installed_twice(both)

    def test_both_are_refused(self):
        """With both packages installed, nothing runs, since each has overwritten files of the other."""
        both = packages_in({"onnxruntime": "/site", "onnxruntime-gpu": "/site"})
        with pytest.raises(PackageError, match="onnxruntime and onnxruntime-gpu are both installed") as caught:
            require_runtime(both)
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint

    def test_neither_package(self):
        """Without ONNX Runtime the error names the extra."""
        code = (
            "import sys; sys.modules['onnxruntime'] = None\n"
            "from demi.runtime.onnxruntime.session import require_runtime\n"
            "try: require_runtime()\n"
            "except Exception as error: print(type(error).__name__, error.hint)"
        )
        answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

        assert "PackageError install it with: pip install 'demi-inference[cpu]'\n" == answer

    @pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
    def test_one(self, package):
        """Either package alone is accepted."""
        assert installed_twice(packages_in({package: "/site"})) is None

    def test_packages_in_separate_folders(self):
        """In separate folders the first on the path hides the other, and nothing is overwritten."""
        assert installed_twice(packages_in({"onnxruntime": "/site", "onnxruntime-gpu": "/carried"})) is None

    def test_this_machine(self):
        """Exactly one of them is installed here, and its version is known."""
        assert onnxruntime is require_runtime()
        assert onnxruntime.__version__ == runtime_version()


class TestFakeSession:
    """The fake session behaves like a real one."""

    def test_wrong_feeds_are_refused(self):
        """A fake session checks its inputs."""
        fake = FakeSession([TensorSpec("x", DType.FP32, (2,))], [], lambda feeds: {})
        with pytest.raises(TensorError):
            fake.run({"x": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)]
)
def test_a_containers_share_of_the_cores(tmp_path, quota, cores):
    """The CPU quota of a control group limits the number of usable cores, rounded up."""
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    everything = usable_cores(tmp_path / "none")

    assert min(cores or everything, everything) == usable_cores(file)
