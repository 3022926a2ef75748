"""The service `inference.GRPCInferenceService`: the same functions as the HTTP paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from demi.server.errors import NotFoundError
from demi.server.grpc import inference as messages
from demi.server.grpc.calls import Call, MessageLimits
from demi.server.grpc.infer import InferMethods
from demi.server.models.control import ModelControl, allowed, version_parameter
from demi.server.models.describe import (
    configure_model,
    describe_model,
    describe_server,
)
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory, cuda_unsupported
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview, OwnOverview
from demi.server.telemetry.tracing import Tracer
from demi.server.telemetry.triton_settings import check_unchanged, log_settings, trace_settings

M = TypeVar("M", bound=Message)


class InferenceService:
    """The methods of the service, in snake case. Owns nothing."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        control: ModelControl | None,
        memory: SharedMemory,
        tracer: Tracer | None = None,
        limits: MessageLimits | None = None,
        overview: Overview | None = None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._control = control
        self._memory = memory
        self._overview = overview or OwnOverview(repository)
        self._infer = InferMethods(repository, settings, memory, tracer, limits or MessageLimits())
        self.model_infer = self._infer.unary
        self.model_stream_infer = self._infer.stream

    async def server_live(self, _: messages.ServerLiveRequest, call: Call) -> messages.ServerLiveResponse:
        """Answer as long as the process runs."""
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, _: messages.ServerReadyRequest, call: Call) -> messages.ServerReadyResponse:
        """Return whether all models are ready and the server is not shutting down."""
        return messages.ServerReadyResponse(ready=self._repository.ready)

    async def model_ready(self, asked: messages.ModelReadyRequest, call: Call) -> messages.ModelReadyResponse:
        """Return whether a model is ready; an unknown one is not."""
        try:
            model = self._repository.find(asked.name, asked.version or None)
        except NotFoundError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=model.state is State.READY)

    async def server_metadata(self, _: messages.ServerMetadataRequest, call: Call) -> messages.ServerMetadataResponse:
        """Return the server's name, version and supported protocol extensions."""
        return _filled(messages.ServerMetadataResponse(), describe_server(self._settings))

    async def model_metadata(self, asked: messages.ModelMetadataRequest, call: Call) -> messages.ModelMetadataResponse:
        """Return a model's inputs and outputs."""
        model = self._repository.find(asked.name, asked.version or None)
        described = describe_model(model, self._repository.versions(asked.name), self._settings)
        return _filled(messages.ModelMetadataResponse(), described)

    async def model_config(self, asked: messages.ModelConfigRequest, call: Call) -> messages.ModelConfigResponse:
        """Return the model configuration, which load generators read."""
        model = self._repository.find(asked.name, asked.version or None)
        return messages.ModelConfigResponse(config=_filled(messages.ModelConfig(), configure_model(model)))

    async def model_statistics(
        self, asked: messages.ModelStatisticsRequest, call: Call
    ) -> messages.ModelStatisticsResponse:
        """Counts and times of one version, of all versions of a model, or of every model."""
        found = await self._overview.statistics(asked.name or None, asked.version or None)
        return _filled(messages.ModelStatisticsResponse(), found)

    async def repository_index(
        self, asked: messages.RepositoryIndexRequest, call: Call
    ) -> messages.RepositoryIndexResponse:
        """List all model versions and their states, or only those that are ready."""
        answer = messages.RepositoryIndexResponse()
        for entry in await self._overview.index(ready_only=asked.ready):
            answer.models.add(**asdict(entry))
        return answer

    async def repository_model_load(
        self, asked: messages.RepositoryModelLoadRequest, call: Call
    ) -> messages.RepositoryModelLoadResponse:
        """Load or reload a model from disk, or one version of it; answers once it is ready."""
        control = allowed(self._control)
        await control.load(asked.model_name, version_parameter(_values(asked.parameters)))
        return messages.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, asked: messages.RepositoryModelUnloadRequest, call: Call
    ) -> messages.RepositoryModelUnloadResponse:
        """Unload a model, or one version of it; answers once the requests it has admitted are answered."""
        control = allowed(self._control)
        await control.unload(asked.model_name, version_parameter(_values(asked.parameters)))
        return messages.RepositoryModelUnloadResponse()

    async def system_shared_memory_status(
        self, asked: messages.SystemSharedMemoryStatusRequest, call: Call
    ) -> messages.SystemSharedMemoryStatusResponse:
        """List the registered regions, or return the one of that name."""
        regions = {status.name: asdict(status) for status in self._memory.status(asked.name)}
        return ParseDict({"regions": regions}, messages.SystemSharedMemoryStatusResponse())

    async def system_shared_memory_register(
        self, asked: messages.SystemSharedMemoryRegisterRequest, call: Call
    ) -> messages.SystemSharedMemoryRegisterResponse:
        """Register part of a POSIX shared memory object as a region."""
        self._memory.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    async def system_shared_memory_unregister(
        self, asked: messages.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> messages.SystemSharedMemoryUnregisterResponse:
        """Unregister one region, or all."""
        self._memory.unregister(asked.name)
        return messages.SystemSharedMemoryUnregisterResponse()

    async def cuda_shared_memory_status(
        self, asked: messages.CudaSharedMemoryStatusRequest, call: Call
    ) -> messages.CudaSharedMemoryStatusResponse:
        """List no regions: CUDA shared memory is not supported."""
        NO_SHARED_MEMORY.status(asked.name)
        return messages.CudaSharedMemoryStatusResponse()

    async def cuda_shared_memory_register(
        self, asked: messages.CudaSharedMemoryRegisterRequest, call: Call
    ) -> messages.CudaSharedMemoryRegisterResponse:
        """Refuse with UNIMPLEMENTED."""
        raise cuda_unsupported()

    async def cuda_shared_memory_unregister(
        self, asked: messages.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> messages.CudaSharedMemoryUnregisterResponse:
        """Do nothing: there are no CUDA regions."""
        return messages.CudaSharedMemoryUnregisterResponse()

    async def trace_setting(self, asked: messages.TraceSettingRequest, call: Call) -> messages.TraceSettingResponse:
        """Return the trace settings; refuse a request that would change them."""
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
        """Return the log settings; refuse a request that would change them."""
        own = log_settings(self._settings)
        check_unchanged("log", {name: _choice(setting) for name, setting in asked.settings.items()}, own)
        answer = messages.LogSettingsResponse()
        for name, value in own.items():
            kind = "bool" if isinstance(value, bool) else "uint32" if isinstance(value, int) else "string"
            setattr(answer.settings[name], f"{kind}_param", value)
        return answer


def _values(parameters: Mapping[str, messages.ModelRepositoryParameter]) -> dict[str, object]:
    """Return parameters by name; None for one without a value."""
    kinds = ((name, parameter, parameter.WhichOneof("parameter_choice")) for name, parameter in parameters.items())
    return {name: getattr(parameter, kind) if kind else None for name, parameter, kind in kinds}


def _choice(setting: messages.LogSettingsRequest.SettingValue) -> bool | int | str | None:
    """Return the value of a log setting; None if it has none."""
    kind = setting.WhichOneof("parameter_choice")
    return getattr(setting, kind) if kind else None


def _filled(message: M, values: Any) -> M:
    """Fill a message from a dataclass, field by field; fields unknown to the message are skipped."""
    return ParseDict(asdict(values), message, ignore_unknown_fields=True)
