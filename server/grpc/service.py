"""`inference.GRPCInferenceService`: the paths of HTTP as methods, over the same functions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from demi.server.errors import NotFoundError
from demi.server.grpc import inference as messages
from demi.server.grpc.calls import Bounds, Call
from demi.server.grpc.infer import Inference
from demi.server.models.control import Control, allowed, check_control_parameters
from demi.server.models.describe import configure_model, describe_model, describe_server, index_entry, statistics_of
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory, no_cuda
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Tracer
from demi.server.telemetry.triton_settings import check_unchanged, log_settings, trace_settings

M = TypeVar("M", bound=Message)


class InferenceService:
    """The methods of the service, by their names in snake case. Owns nothing."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        control: Control | None,
        memory: SharedMemory,
        tracer: Tracer | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._control = control
        self._memory = memory
        self._inference = Inference(repository, settings, memory, tracer, bounds or Bounds())
        self.model_infer = self._inference.one
        self.model_stream_infer = self._inference.stream

    async def server_live(self, _: messages.ServerLiveRequest, call: Call) -> messages.ServerLiveResponse:
        """The process answers."""
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, _: messages.ServerReadyRequest, call: Call) -> messages.ServerReadyResponse:
        """Whether requests are welcome."""
        return messages.ServerReadyResponse(ready=self._repository.ready)

    async def model_ready(self, asked: messages.ModelReadyRequest, call: Call) -> messages.ModelReadyResponse:
        """Whether a model can be asked; one that is not there is not ready."""
        try:
            model = self._repository.find(asked.name, asked.version or None)
        except NotFoundError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=model.state is State.READY)

    async def server_metadata(self, _: messages.ServerMetadataRequest, call: Call) -> messages.ServerMetadataResponse:
        """The server's name, version and the extensions of the protocol it speaks."""
        return _filled(messages.ServerMetadataResponse(), describe_server(self._settings))

    async def model_metadata(self, asked: messages.ModelMetadataRequest, call: Call) -> messages.ModelMetadataResponse:
        """The inputs and outputs of a model."""
        model = self._repository.find(asked.name, asked.version or None)
        described = describe_model(model, self._repository.versions(asked.name), self._settings)
        return _filled(messages.ModelMetadataResponse(), described)

    async def model_config(self, asked: messages.ModelConfigRequest, call: Call) -> messages.ModelConfigResponse:
        """The configuration that load generators read."""
        model = self._repository.find(asked.name, asked.version or None)
        return messages.ModelConfigResponse(config=_filled(messages.ModelConfig(), configure_model(model)))

    async def model_statistics(
        self, asked: messages.ModelStatisticsRequest, call: Call
    ) -> messages.ModelStatisticsResponse:
        """Counts and times of one version, of all versions of a model, or of every model."""
        found = statistics_of(self._repository, asked.name or None, asked.version or None)
        return _filled(messages.ModelStatisticsResponse(), found)

    async def repository_index(
        self, asked: messages.RepositoryIndexRequest, call: Call
    ) -> messages.RepositoryIndexResponse:
        """Every model version with its state, or only those that are ready."""
        answer = messages.RepositoryIndexResponse()
        for model in self._repository:
            if model.state is State.READY or not asked.ready:
                answer.models.add(**asdict(index_entry(model)))
        return answer

    async def repository_model_load(
        self, asked: messages.RepositoryModelLoadRequest, call: Call
    ) -> messages.RepositoryModelLoadResponse:
        """Serve what is on disk under this name now; answered once it is ready."""
        control = allowed(self._control)
        check_control_parameters(asked.parameters)
        await control.load(asked.model_name)
        return messages.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, asked: messages.RepositoryModelUnloadRequest, call: Call
    ) -> messages.RepositoryModelUnloadResponse:
        """Take a model out of service; answered once it has answered what it had admitted."""
        control = allowed(self._control)
        check_control_parameters(asked.parameters)
        await control.unload(asked.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def system_shared_memory_status(
        self, asked: messages.SystemSharedMemoryStatusRequest, call: Call
    ) -> messages.SystemSharedMemoryStatusResponse:
        """The registered regions, or the one of that name."""
        regions = {status.name: asdict(status) for status in self._memory.status(asked.name)}
        return ParseDict({"regions": regions}, messages.SystemSharedMemoryStatusResponse())

    async def system_shared_memory_register(
        self, asked: messages.SystemSharedMemoryRegisterRequest, call: Call
    ) -> messages.SystemSharedMemoryRegisterResponse:
        """Call a part of a POSIX shared memory object by a name."""
        self._memory.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, asked: messages.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> messages.SystemSharedMemoryUnregisterResponse:
        """Let go of one region, or of all."""
        self._memory.unregister(asked.name)
        return messages.SystemSharedMemoryUnregisterResponse()

    async def cuda_shared_memory_status(
        self, asked: messages.CudaSharedMemoryStatusRequest, call: Call
    ) -> messages.CudaSharedMemoryStatusResponse:
        """No region: the memory of a GPU is not shared with clients."""
        NO_SHARED_MEMORY.status(asked.name)
        return messages.CudaSharedMemoryStatusResponse()

    async def cuda_shared_memory_register(
        self, asked: messages.CudaSharedMemoryRegisterRequest, call: Call
    ) -> messages.CudaSharedMemoryRegisterResponse:
        """Refused."""
        raise no_cuda()

    async def cuda_shared_memory_unregister(
        self, asked: messages.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> messages.CudaSharedMemoryUnregisterResponse:
        """Nothing to let go of."""
        return messages.CudaSharedMemoryUnregisterResponse()

    async def trace_setting(self, asked: messages.TraceSettingRequest, call: Call) -> messages.TraceSettingResponse:
        """What is traced; what would change it is refused."""
        if asked.model_name:
            self._repository.find(asked.model_name)
        own = trace_settings(self._settings)
        wanted = {name: list(setting.value) or None for name, setting in asked.settings.items()}
        check_unchanged("trace", wanted, own)
        answer = messages.TraceSettingResponse()
        for name, value in own.items():
            answer.settings[name].value.extend(value if isinstance(value, list) else [str(value)])
        return answer

    async def log_settings(self, asked: messages.LogSettingsRequest, call: Call) -> messages.LogSettingsResponse:
        """What is logged; what would change it is refused."""
        own = log_settings(self._settings)
        check_unchanged("log", {name: _choice(setting) for name, setting in asked.settings.items()}, own)
        answer = messages.LogSettingsResponse()
        for name, value in own.items():
            kind = "bool" if isinstance(value, bool) else "uint32" if isinstance(value, int) else "string"
            setattr(answer.settings[name], f"{kind}_param", value)
        return answer


def _choice(setting: messages.LogSettingsRequest.SettingValue) -> bool | int | str | None:
    """The value of a log setting; None where it has none."""
    kind = setting.WhichOneof("parameter_choice")
    return getattr(setting, kind) if kind else None


def _filled(message: M, values: Any) -> M:
    """A message with the members of a dataclass that it knows, by their names."""
    return ParseDict(asdict(values), message, ignore_unknown_fields=True)
