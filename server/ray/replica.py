"""A replica: a whole server without sockets, with the hooks that Ray Serve calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from demi.remote.address import Address
from demi.remote.follow import local_models
from demi.server.http.draining_server import FOLLOW_S
from demi.server.http.inside_ray import inside_ray
from demi.server.http.whole_answers import write_answers_whole
from demi.server.keys import require_key
from demi.server.models.control import Control, ModelControl
from demi.server.models.model import State
from demi.server.models.repository import Load, Repository
from demi.server.models.trial_loads import load_after_trial
from demi.server.ray.choices import ActorBoard, Choices, Key
from demi.server.ray.drift import DECIDE_S, Drift
from demi.server.ray.everywhere import FleetControl, FleetOverview, answer_alone
from demi.server.ray.fleet import Fleet, RayPeers, Reply, reply_to
from demi.server.ray.grpc import GrpcMethods
from demi.server.ray.options import missing_environment
from demi.server.service import Service, open_service, prepare, tune_garbage_collector
from demi.server.setting_values import parse_shares
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview, OwnOverview
from demi.server.threads import in_thread

log = logging.getLogger("demi.server")


class Replica(GrpcMethods):
    """One server of the deployment. Everything runs on Ray's loop for user code, except loading."""

    load: Load = staticmethod(load_after_trial)
    """Loads a bundle; measurements replace it."""

    async def __init__(self, models: Path | Address, settings: ServeSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        write_answers_whole()
        self._settings = settings
        self._peers = RayPeers()
        self._held = contextlib.ExitStack()
        self._service = await in_thread(lambda: self._open(models))
        self.grpc_services = self._service.grpc_methods()
        await self._choices.exchange()
        drift = Drift(self._service.repository, self._fleet, self._choices)
        rounds = [
            self._choices.keep_exchanging(),
            _every(FOLLOW_S, self._control.traffic.follow),
            _every(DECIDE_S, drift.decide),
        ]
        if settings.watch_s:
            rounds.append(_every(settings.watch_s, self._control.sync))
        self._tasks = [asyncio.create_task(each) for each in rounds]
        tune_garbage_collector()

    def _open(self, models: Path | Address) -> Service:
        prepared = prepare(self._settings)
        require_key(self._settings, prepared.keys, is_local=False)
        if missing := missing_environment():
            log.warning("Ray was started without %s: a replica that dies loses requests", ", ".join(missing))
        # Replicas of one node share its cache, and follow the address each for themselves.
        folder = self._held.enter_context(local_models(models, self._settings.watch_s))
        return open_service(prepared, folder, self.load, among=self._among)

    def _among(self, overview: OwnOverview, control: Control) -> tuple[Overview, ModelControl]:
        """Answer and change models together with the other replicas."""
        self._overview, self._control = overview, control
        self._fleet = Fleet(self._peers, self._answer)
        board = ActorBoard(self._peers.app, self._peers.deployment)
        self._choices = Choices(board, self._follow, self._peers.replica)
        return FleetOverview(self._fleet, self._choices), FleetControl(self._fleet, self._choices, control)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application. Ray calls this once the constructor has ended."""
        return inside_ray(self._service.app)

    async def answer(self, question: str, *arguments: Any) -> Reply:
        """Answer another replica's question about this one."""
        return await reply_to(self._peers.replica, self._answer, question, *arguments)

    async def check_health(self) -> None:
        """Raise if a model that was ready has failed: Ray then replaces the replica."""
        if reason := failure(self._service.repository):
            raise RuntimeError(reason)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Follow the deployment's `user_config`, which replicas that start later get as well.

        `shadow` sets the share of requests that are sampled, as the setting does; `unload` lists models not to serve.
        """
        shares = parse_shares(str(user_config["shadow"])) if "shadow" in user_config else None
        for model in self._service.repository:
            if shares is not None and model.shadow:
                model.shadow.share = shares.of(model.name)
        for name in user_config.get("unload", ()):
            if self._service.repository.versions(name):
                await self._control.unload(name)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return requests in flight and waiting, for a custom autoscaling policy."""
        models = list(self._service.repository)
        return {
            "in_flight": float(sum(model.in_flight for model in models)),
            "queue_length": float(sum(model.queue_length for model in models)),
        }

    async def __del__(self) -> None:
        """Close the models. Ray calls this once the last request has been answered."""
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if service := getattr(self, "_service", None):
            service.repository.drain()
            await in_thread(service.close)
            await in_thread(self._held.close)

    def _answer(self, question: str, *arguments: Any) -> Coroutine[Any, Any, Any]:
        return answer_alone(self._overview, self._control, question, *arguments)

    async def _follow(self, key: Key, value: Any) -> None:
        """Do what a client has chosen through another replica."""
        match key:
            case ("served", name, version):
                await self._answer("load" if value else "unload", name, version or None)
            case ("drift", _, _):
                pass  # `Drift` follows verdicts, for models that are loaded later as well
            case ("shadow", name, version):
                await self._answer("set_shadow", name, version or None, value)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again until cancelled; failures are logged, and it is tried again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("a replica's regular work failed")


def failure(repository: Repository) -> str:
    """Return why a new replica is needed: a model that was ready has failed. Empty if there is no such model."""
    failed = [model for model in repository if model.in_service and model.state is State.FAILED]
    return "; ".join(f"model `{model.name}` version {model.version}: {model.reason}" for model in failed)
