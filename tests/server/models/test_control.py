"""Model control: models are loaded, swapped and unloaded, and every admitted request is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from demi.bundles.manifest import MODEL
from demi.errors import BundleError
from demi.server.errors import NotFoundError
from demi.server.models.control import Control
from demi.server.models.repository import open_repository
from demi.server.settings import ServeSettings
from tests.server.bundles import SCALE, damage, write_bundle
from tests.server.fakes import DoublingSession, loaded, until
from tests.server.http.test_infer import ROW
from tests.server.models.test_repository import load_fake, names
from tests.server.processes import serving

SETTINGS = ServeSettings()
DOUBLE = SCALE.replace("{2.0, 3.0, 4.0}", "{20.0, 30.0, 40.0}")
X = {"x": np.ones((1, 3), np.float32)}


def scene(path, change, load=load_fake):
    """Run `change(control, repository)` for the repository at `path` on an event loop, and return its result."""
    repository = open_repository(path, SETTINGS, load)

    async def run():
        return await change(Control(repository, path, SETTINGS, load), repository)

    return asyncio.run(run())


def test_a_new_version_is_loaded_and_answers(tmp_path):
    """Requests without a version go to the new one, and the old one is still available by its version."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
        await control.load("scale")
        return repository.find("scale").version, names(repository)

    assert ("2", ["scale/1 READY", "scale/2 READY"]) == scene(tmp_path, change)


def test_a_new_model_is_loaded(tmp_path):
    """A model that was added after startup can be loaded."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        write_bundle(tmp_path / "other" / "1", SCALE, name="other")
        await control.load("other")
        return names(repository)

    assert ["other/1 READY", "scale/1 READY"] == scene(tmp_path, change)


def test_unchanged_bundles_are_not_reloaded(tmp_path):
    """Loading a model whose files have not changed does nothing."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        before = repository.find("scale")
        await control.load("scale")
        return before is repository.find("scale")

    assert scene(tmp_path, change)


def test_a_swap_drops_no_request(tmp_path):
    """After a bundle is replaced on disk, the new one answers at once, and the old one its admitted requests."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    sessions: list[DoublingSession] = []

    def load(path, settings):
        sessions.append(DoublingSession())
        return loaded(sessions[-1])

    async def change(control, repository):
        old = repository.find("scale")

        async def ask_old():
            with old.admitted():
                return await old.infer(X, ["y"], 10)

        early = [asyncio.create_task(ask_old()) for _ in range(3)]
        await until(sessions[0].started.is_set)
        write_bundle_again(tmp_path / "scale" / "1", DOUBLE)
        swap = asyncio.create_task(control.load("scale"))
        await until(lambda: repository.find("scale") is not old)
        assert repository.ready
        assert 3 == repository.in_flight
        sessions[1].gate.set()
        new = await repository.find("scale").infer(X, ["y"], 10)
        assert not swap.done()
        sessions[0].gate.set()
        answers = await asyncio.gather(*early)
        await swap
        return [answer.outputs["y"].tolist() for answer in (new, *answers)], repository.in_flight, old.reason

    answers, in_flight, reason = scene(tmp_path, change, load)

    assert [[[2, 2, 2]]] * 4 == answers
    assert (0, "the model was unloaded") == (in_flight, reason)


def write_bundle_again(path, text):
    """Replace a bundle on disk with another."""
    shutil.rmtree(path)
    write_bundle(path, text, name="scale")


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path):
    """The caller gets the error, and the old bundle continues to answer."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    def load(path, settings):
        if (path / "bad").exists():
            raise BundleError("it is bad")
        return load_fake(path, settings)

    async def change(control, repository):
        before = repository.find("scale")
        (tmp_path / "scale" / "1" / "bad").write_text("")
        with pytest.raises(BundleError, match="it is bad"):
            await control.load("scale")
        return before is repository.find("scale"), names(repository), repository.ready

    assert (True, ["scale/1 READY"], True) == scene(tmp_path, change, load)


def test_a_new_version_that_fails_is_kept_with_its_reason(tmp_path):
    """The version before it answers, and the index holds the new one's reason."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    repository = open_repository(tmp_path, SETTINGS)

    async def change():
        control = Control(repository, tmp_path, SETTINGS)
        damage(write_bundle(tmp_path / "scale" / "2", SCALE, version=2) / MODEL)
        with pytest.raises(BundleError, match="digest differs"):
            await control.load("scale")

    asyncio.run(change())

    assert ["scale/1 READY", "scale/2 UNAVAILABLE"] == names(repository)
    assert "1" == repository.find("scale").version
    assert repository.ready


def test_unloading_and_loading_again(tmp_path):
    """An unloaded model stays in the index with its reason, does not affect readiness, and can be loaded again."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    write_bundle(tmp_path / "other" / "1", SCALE, name="other")

    async def change(control, repository):
        await control.unload("scale")
        gone = names(repository), repository.find("scale").reason, repository.ready
        await control.sync()
        assert "scale/1 UNAVAILABLE" in names(repository), "what was unloaded on purpose must stay so"
        await control.load("scale")
        return gone, names(repository)

    gone, back = scene(tmp_path, change)

    assert (["other/1 READY", "scale/1 UNAVAILABLE"], "the model was unloaded", True) == gone
    assert ["other/1 READY", "scale/1 READY"] == back


def test_removed_bundles_are_unloaded(tmp_path):
    """A sync loads new versions, and unloads and forgets removed ones."""
    for version in (1, 2):
        write_bundle(tmp_path / "scale" / str(version), SCALE, version=version)

    async def change(control, repository):
        shutil.rmtree(tmp_path / "scale" / "1")
        write_bundle(tmp_path / "scale" / "3", SCALE, version=3)
        await control.sync()
        return names(repository)

    assert ["scale/2 READY", "scale/3 READY"] == scene(tmp_path, change)


def test_an_empty_folder_unloads_nothing(tmp_path):
    """A folder that is briefly unreadable, as when a volume is remounted, does not unload the models."""
    write_bundle(tmp_path / "models" / "scale" / "1", SCALE)

    async def change(control, repository):
        (tmp_path / "models").rename(tmp_path / "away")
        await control.sync()
        return names(repository)

    assert ["scale/1 READY"] == scene(tmp_path / "models", change)


@pytest.mark.parametrize("name", ["nope", "", ".", "..", "../scale", "/etc"])
def test_names_are_never_paths(tmp_path, name):
    """Names are compared with those of bundles and are never used as paths."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        for action in (control.load, control.unload):
            with pytest.raises(NotFoundError):
                await action(name)

    scene(tmp_path, change)


def test_a_draining_server_loads_nothing(tmp_path):
    """A sync does nothing once the server is shutting down."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        repository.drain()
        write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
        await control.sync()
        return names(repository)

    assert ["scale/1 UNLOADING"] == scene(tmp_path, change)


def test_model_control_is_off_by_default(client):
    """The answer is 403 with the flag that allows it, for any name."""
    for path in ("scale/load", "scale/unload", "nope/load"):
        response = client.post(f"/v2/repository/models/{path}")
        assert 403 == response.status_code
        assert "--allow-model-control" in response.json()["error"]
    assert "model_repository" not in client.get("/v2").json()["extensions"]


def test_over_http_while_requests_come(tmp_path):
    """tritonclient loads, swaps and unloads a model of a real server, and no request is dropped."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    write_bundle(tmp_path / "stays" / "1", SCALE, name="stays")
    with serving(tmp_path, "--allow-model-control") as server, ThreadPoolExecutor(2) as pool:
        client = triton.InferenceServerClient(urlsplit(server.url).netloc)
        running = True

        def keep_asking() -> list[tuple[int, str]]:
            with httpx.Client(base_url=server.url) as http:
                seen = []
                while running:
                    response = http.post("/v2/models/scale/infer", content=ROW)
                    seen.append((response.status_code, response.json().get("model_version", response.text)))
                return seen

        asking = [pool.submit(keep_asking) for _ in range(2)]
        time.sleep(0.1)
        write_bundle(tmp_path / "scale" / "2", DOUBLE, version=2)
        client.load_model("scale")
        time.sleep(0.1)
        running = False
        seen = [row for task in asking for row in task.result()]
        client.unload_model("scale")
        ready = client.is_model_ready("scale"), client.is_server_ready()
        refused = httpx.post(server.url + "/v2/models/scale/infer", content=ROW)
        with pytest.raises(triton.InferenceServerException, match="this server does not accept"):
            client.load_model("scale", config="{}")
        client.load_model("scale")
        again = client.is_model_ready("scale")
        extensions = client.get_server_metadata()["extensions"]
        client.close()

    assert {(200, "1"), (200, "2")} == set(seen)
    assert (False, True, True) == (*ready, again)
    assert 503 == refused.status_code
    assert "unloaded" in refused.json()["error"]
    assert "model_repository" in extensions


def test_watching_the_folder(tmp_path):
    """With `--watch` a new bundle is soon served, and a removed one is unloaded."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    with serving(tmp_path, "--watch", "0.1") as server, httpx.Client(base_url=server.url) as http:

        def wait_for(version: str, status: int) -> bool:
            stop = time.monotonic() + 10
            while time.monotonic() < stop:
                if http.get(f"/v2/models/scale/versions/{version}/ready").status_code == status:
                    return True
                time.sleep(0.05)
            return False

        write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
        assert wait_for("2", 200)
        shutil.rmtree(tmp_path / "scale" / "1")
        assert wait_for("1", 404)
        assert 200 == http.post("/v2/models/scale/infer", content=ROW).status_code


def test_the_drain_limit_holds_for_a_swap(tmp_path):
    """A request that never ends delays unloading only up to the drain time."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    settings = dataclasses.replace(SETTINGS, drain_s=0.05)
    session = DoublingSession()
    repository = open_repository(tmp_path, settings, lambda *_: loaded(session))

    async def change():
        model = repository.find("scale")

        async def ask():
            with model.admitted():
                return await model.infer(X, ["y"], 10)

        task = asyncio.create_task(ask())
        await until(session.started.is_set)
        await Control(repository, tmp_path, settings, load_fake).unload("scale")
        session.gate.set()
        return await task

    assert [[2, 2, 2]] == asyncio.run(change()).outputs["y"].tolist()


def test_log_of_a_swap(tmp_path, caplog):
    """A model that a newer copy replaces is logged as replaced, which does not read like an outage."""
    write_bundle(tmp_path / "scale" / "1", SCALE)

    async def change(control, repository):
        write_bundle_again(tmp_path / "scale" / "1", DOUBLE)
        await control.load("scale")

    with caplog.at_level("INFO", logger="demi.server"):
        scene(tmp_path, change)

    assert "model replaced: name=scale version=1" in caplog.messages
    assert not [message for message in caplog.messages if "unloaded" in message]
