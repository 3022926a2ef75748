"""Small fakes for tests that need no real runtime."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from demi.errors import InferenceError
from demi.runtime.base import CPU, Device
from demi.tensors import Feeds, TensorSpec, check_feeds


class FakeSession:
    """A Session that computes `answer(feeds)`, checks its inputs, and records their shapes."""

    device: Device = CPU

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        answer: Callable[[Feeds], Feeds],
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.answer = answer
        self.asked: list[Feeds] = []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        self.asked.append(check_feeds(self.inputs, feeds))
        answers = self.answer(feeds)
        if set(answers) != {spec.name for spec in self.outputs}:
            raise InferenceError(f"the fake answers {sorted(answers)}")
        return {name: answers[name] for name in outputs or answers}


def packages_in(folders: dict[str, str]) -> Callable[[str], Any]:
    """Return a fake of `importlib.metadata.distribution` for a machine with only these packages, each in its folder."""

    def find(package: str) -> Any:
        if package not in folders:
            raise importlib.metadata.PackageNotFoundError(package)
        return SimpleNamespace(locate_file=lambda name: f"{folders[package]}/{name}")

    return find


CUDA_OPTIONS = set(
    "device_id gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search cudnn_conv_use_max_workspace "
    "cudnn_conv1d_pad_to_nc1d do_copy_in_default_stream has_user_compute_stream user_compute_stream enable_cuda_graph "
    "use_tf32 prefer_nhwc enable_skip_layer_norm_strict_mode use_ep_level_unified_stream fuse_conv_bias sdpa_kernel "
    "enable_cudnn tunable_op_enable tunable_op_tuning_enable tunable_op_max_tuning_duration_ms".split()
)


class FakeRuntime:
    """The part of the `onnxruntime` module that Demi uses, on a machine with GPUs, or with a fault.

    `available` is what the build lists, `loads` what really loads; `failure` is raised when a session is made. Without
    `graphs`, the model is one that CUDA graphs cannot record. Its CUDA provider takes the options that 1.31.1 takes.
    """

    __version__ = "1.31.1"
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_BASIC="basic")

    def __init__(
        self,
        available: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
        loads: Sequence[str] | None = None,
        failure: str | None = None,
        graphs: bool = True,
        operator: str = "Add",
        on_cpu: Sequence[str] = ("",),
        on_gpu: Sequence[str] = ("a",),
        memory: str = "Cuda",
    ) -> None:
        self.memory = memory
        self.operator, self.on_cpu, self.on_gpu = operator, on_cpu, on_gpu
        self.available, self.loads, self.failure = list(available), list(loads or available), failure
        self.graphs = graphs
        self.preloaded = 0
        self.sessions: list[SimpleNamespace] = []

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcufft.so.12")  # like the real one

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    def InferenceSession(  # noqa: N802
        self, model: Any, options: Any, providers: Any, enable_fallback: int, disabled_optimizers: set[str]
    ) -> Any:
        if self.failure:
            raise RuntimeError(self.failure)
        for name, value in providers[0][1].items() if isinstance(providers[0], tuple) else ():
            if name not in CUDA_OPTIONS or not isinstance(value, str):
                raise RuntimeError(f'Unknown provider option: "{name}"')
        if not self.graphs and "enable_cuda_graph" in providers[0][1]:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        node = SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 2])
        on_cpu = SimpleNamespace(
            ep_name="CPUExecutionProvider",
            get_nodes=lambda: [SimpleNamespace(name=name, op_type="NonZero") for name in self.on_cpu],
        )
        on_gpu = SimpleNamespace(
            ep_name="CUDAExecutionProvider",
            get_nodes=lambda: [SimpleNamespace(name=name, op_type=self.operator) for name in self.on_gpu],
        )
        session = SimpleNamespace(
            asked=SimpleNamespace(
                model=model,
                options=options,
                providers=providers,
                enable_fallback=enable_fallback,
                disabled_optimizers=disabled_optimizers,
            ),
            get_providers=lambda: self.loads,
            get_inputs=lambda: [node],
            get_outputs=lambda: [node],
            get_input_memory_infos=lambda: [SimpleNamespace(name=self.memory)],
            get_provider_graph_assignment_info=lambda: [on_cpu, on_gpu],
        )
        self.sessions.append(session)
        return session
