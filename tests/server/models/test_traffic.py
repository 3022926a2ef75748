"""Traffic between versions: stable, canary, aliases, promotion and rollback, in memory and in `versions.json`."""

from __future__ import annotations

import asyncio
import contextlib
import os

import numpy as np
import pytest

from demi.bundles.traffic import FILE, Canary, Header, Traffic, read_traffic, write_traffic
from demi.errors import BundleError, InferenceError, InputError
from demi.server.errors import NotFoundError, RequestError, UnavailableError
from demi.server.models.control import Control, version_parameter
from demi.server.models.describe_versions import describe_versions
from demi.server.models.model import State
from demi.server.models.repository import Repository, open_repository
from demi.server.settings import ServeSettings
from demi.tensors import parse_spec
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import DoublingSession, loaded, open_fake, until
from tests.server.models.test_repository import load_fake, names

SETTINGS = ServeSettings()
X = {"x": np.ones((1, 3), np.float32)}


def no_header(name):
    """Return the header of a request that has none."""
    return


def opened(root, *numbers, load=load_fake):
    """Write a model `scale` with these versions, and open it."""
    for number in numbers:
        write_bundle(root / "scale" / str(number), SCALE, version=number)
    return open_repository(root, SETTINGS, load)


def scene(root, change, *numbers, load=load_fake):
    """Run `change(traffic, repository)` for a model `scale` with these versions, and return its result."""
    repository = opened(root, *numbers, load=load)

    async def run():
        return await change(Control(repository, root, SETTINGS, load).traffic, repository)

    return asyncio.run(run())


class TestRouting:
    """The version that answers one request."""

    def test_without_rules_the_newest_answers(self, tmp_path):
        """Nothing changes for models without rules."""
        assert "2" == opened(tmp_path, 1, 2).route("scale", None, no_header).version

    def test_a_stable_version_answers_instead_of_the_newest(self, tmp_path):
        """It also answers metadata requests, and the newest can still be named."""
        repository = opened(tmp_path, 1, 2)
        repository.set_traffic("scale", Traffic(stable=1))

        assert "1" == repository.route("scale", None, no_header).version
        assert "1" == repository.find("scale").version
        assert "2" == repository.route("scale", "2", no_header).version

    def test_a_canary_answers_its_share(self, tmp_path):
        """10 of 100 evenly spread draws go to a canary with 10%."""
        draws = iter([number / 100 for number in range(100)])
        repository = Repository(list(opened(tmp_path, 1, 2)), draw=lambda: next(draws))
        repository.set_traffic("scale", Traffic(stable=1, canary=Canary(2, 10)))

        answering = [repository.route("scale", None, no_header).version for _ in range(100)]

        assert (90, 10) == (answering.count("1"), answering.count("2"))

    def test_a_header_sends_a_request_to_the_canary(self, tmp_path):
        """With a share of 0, only requests with the header and its value go there."""
        repository = opened(tmp_path, 1, 2)
        repository.set_traffic("scale", Traffic(stable=1, canary=Canary(2, 0, Header("x-canary", "yes"))))

        def ask(**headers):
            return repository.route("scale", None, lambda name: headers.get(name.replace("-", "_"))).version

        assert ["2", "1", "1"] == [ask(x_canary="yes"), ask(x_canary="no"), ask()]

    def test_a_canary_that_is_not_ready_gets_no_requests(self, tmp_path):
        """The stable version answers all of them."""
        repository = opened(tmp_path, 1, 2)
        repository.set_traffic("scale", Traffic(stable=1, canary=Canary(2, 100)))
        repository.find("scale", "2").retire()

        assert "1" == repository.route("scale", None, no_header).version
        assert [100.0, 0.0] == [repository.share(model) for model in repository]

    def test_a_stable_version_that_is_not_ready_is_never_replaced_silently(self, tmp_path):
        """Requests get its reason, not the answer of another version."""
        repository = opened(tmp_path, 1, 2)
        repository.set_traffic("scale", Traffic(stable=1))
        repository.find("scale", "1").retire()

        with pytest.raises(UnavailableError, match="version 1 is not ready"):
            repository.route("scale", None, no_header).check_ready()

    def test_aliases_name_versions(self, tmp_path):
        """`stable` and `canary` and other aliases can be used as a version; unknown ones are listed."""
        repository = opened(tmp_path, 1, 2, 3)
        assert "3" == repository.find("scale", "stable").version, "without rules it is what answers"
        repository.set_traffic("scale", Traffic(stable=2, canary=Canary(3, 5), aliases={"old": 1, "gone": 7}))

        assert ["2", "3", "1"] == [repository.find("scale", alias).version for alias in ("stable", "canary", "old")]
        with pytest.raises(NotFoundError, match=r"unknown version `new` .* it has 1, 2, 3, stable, canary"):
            repository.find("scale", "new")
        with pytest.raises(NotFoundError, match=r"`gone` \(version 7\)"):
            repository.find("scale", "gone")

    def test_a_stable_version_that_is_gone(self, tmp_path):
        """The error names it; it is not a crash."""
        repository = opened(tmp_path, 1)
        repository.set_traffic("scale", Traffic(stable=4))

        with pytest.raises(NotFoundError, match=r"`stable` \(version 4\)"):
            repository.find("scale")
        assert describe_versions(repository, "scale").answering is None


class TestChanges:
    """Canary, promotion, rollback and aliases at run time."""

    def test_a_canary_that_is_promoted_and_rolled_back(self, tmp_path):
        """Each step is applied and saved."""

        async def change(traffic, repository):
            steps = []
            for step in (
                traffic.canary("scale", None, 10),
                traffic.promote("scale", None),
                traffic.roll_back("scale", None),
            ):
                assert await step, "it must be saved"
                assert repository.traffic("scale") == read_traffic(tmp_path / "scale")
                steps.append([repository.share(model) for model in repository])
            return steps

        assert [[90, 10], [0, 100], [100, 0]] == scene(tmp_path, change, 1, 2)

    def test_a_new_version_starts_as_a_canary(self, tmp_path):
        """It is loaded, and at no moment does it answer more than its share."""

        async def change(traffic, repository):
            write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
            seen = []

            async def watch():
                while True:
                    seen.append(repository.share(repository.find("scale", "1")))
                    await asyncio.sleep(0)

            watching = asyncio.create_task(watch())
            await traffic.canary("scale", "2", 10)
            watching.cancel()
            return names(repository), set(seen)

        assert (["scale/1 READY", "scale/2 READY"], {100.0, 90.0}) == scene(tmp_path, change, 1)

    def test_a_canary_that_cannot_be_loaded(self, tmp_path):
        """The error is its own, and the version before it answers everything."""

        def load(path, settings):
            if path.name == "2":
                raise BundleError("it is bad")
            return load_fake(path, settings)

        async def change(traffic, repository):
            write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
            with pytest.raises(BundleError, match="it is bad"):
                await traffic.canary("scale", "2", 10)
            return repository.share(repository.find("scale", "1"))

        assert 100.0 == scene(tmp_path, change, 1, load=load)

    def test_a_canary_with_other_inputs_is_refused(self, tmp_path):
        """Clients of one version could not call the other; nothing is sent to it."""

        def load(path, settings):
            if path.name == "1":
                return load_fake(path, settings)
            session = DoublingSession(inputs=(parse_spec("x:fp32[batch,4]"),))
            session.gate.set()
            return loaded(session)

        async def change(traffic, repository):
            write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
            with pytest.raises(InputError, match=r"versions 1 and 2 .* cannot share traffic: input `x`"):
                await traffic.canary("scale", "2", 10)
            return repository.share(repository.find("scale", "1"))

        assert 100.0 == scene(tmp_path, change, 1, load=load)

    def test_requests_in_flight_are_answered_by_their_version(self, tmp_path):
        """A rollback waits for nothing and drops nothing."""
        sessions = {}

        def load(path, settings):
            sessions[path.name] = DoublingSession()
            return loaded(sessions[path.name])

        async def change(traffic, repository):
            model = repository.route("scale", None, no_header)

            async def ask():
                with model.admitted():
                    return await model.infer(X, ["y"], 10)

            asking = asyncio.create_task(ask())
            await until(sessions["2"].started.is_set)
            await traffic.roll_back("scale", None)
            after = repository.route("scale", None, no_header).version
            sessions["2"].gate.set()
            return model.version, after, (await asking).outputs["y"].tolist()

        assert ("2", "1", [[2, 2, 2]]) == scene(tmp_path, change, 1, 2, load=load)

    def test_rolling_back_loads_what_was_unloaded(self, tmp_path):
        """A version that was unloaded meanwhile is loaded before it answers."""

        async def change(traffic, repository):
            repository.find("scale", "1").retire()
            await traffic.roll_back("scale", None)
            return names(repository), repository.find("scale").version

        assert (["scale/1 READY", "scale/2 READY"], "1") == scene(tmp_path, change, 1, 2)

    def test_pinning_a_version_and_following_the_newest_again(self, tmp_path):
        """A pinned version answers whatever comes; `newest` undoes it."""

        async def change(traffic, repository):
            await traffic.promote("scale", "1")
            pinned = repository.find("scale").version
            await traffic.promote("scale", "newest")
            return pinned, repository.find("scale").version

        assert ("1", "2") == scene(tmp_path, change, 1, 2)

    def test_aliases_are_set_and_removed(self, tmp_path):
        """An alias may be given by another alias, and is found at once."""

        async def change(traffic, repository):
            await traffic.alias("scale", {"blue": "1", "green": "blue"})
            found = repository.find("scale", "green").version
            await traffic.alias("scale", {"blue": None})
            return found, repository.traffic("scale").aliases

        with pytest.raises(NotFoundError, match="unknown version `blue`"):
            scene(tmp_path, change, 1, 2)

    def test_unknown_models_and_versions(self, tmp_path):
        """Each is refused, and changes nothing."""

        async def change(traffic, repository):
            with pytest.raises(NotFoundError, match="unknown model `nope`"):
                await traffic.promote("nope", "1")
            with pytest.raises(NotFoundError, match="no version `7`"):
                await traffic.promote("scale", "7")
            with pytest.raises(NotFoundError, match=r"unknown version `\.\./1`"):
                await traffic.roll_back("scale", "../1")
            with pytest.raises(RequestError, match="no other version that is ready"):
                await traffic.canary("scale", None, 10)
            return repository.traffic("scale")

        assert Traffic() == scene(tmp_path, change, 1)

    def test_rules_that_cannot_be_saved(self, tmp_path, caplog):
        """They apply, the caller learns that they are not saved, and the log says why."""

        async def change(traffic, repository):
            (tmp_path / "scale" / FILE).mkdir()
            return await traffic.promote("scale", "1"), repository.find("scale").version

        assert (False, "1") == scene(tmp_path, change, 1, 2)
        assert "versions.json cannot be written" in caplog.text


class TestFile:
    """`versions.json`, changed by others."""

    def test_rules_are_read_at_the_start(self, tmp_path):
        """They outlast the server."""
        opened(tmp_path, 1, 2)
        write_traffic(tmp_path / "scale", Traffic(stable=1))

        async def change(traffic, repository):
            return repository.find("scale").version

        assert "1" == scene(tmp_path, change)

    def test_a_changed_file_is_followed(self, tmp_path):
        """So is one that is removed."""

        async def change(traffic, repository):
            answering = []
            write_traffic(tmp_path / "scale", Traffic(stable=1))
            await traffic.follow()
            answering.append(repository.find("scale").version)
            (tmp_path / "scale" / FILE).unlink()
            await traffic.follow()
            return [*answering, repository.find("scale").version]

        assert ["1", "2"] == scene(tmp_path, change, 1, 2)

    def test_a_canary_in_the_file_is_loaded(self, tmp_path):
        """`demi canary` works on a folder while a server serves it."""

        async def change(traffic, repository):
            write_bundle(tmp_path / "scale" / "2", SCALE, version=2)
            write_traffic(tmp_path / "scale", Traffic(stable=1, canary=Canary(2, 25)))
            await traffic.follow()
            return [repository.share(model) for model in repository]

        assert [75.0, 25.0] == scene(tmp_path, change, 1)

    def test_a_file_that_is_not_valid_changes_nothing(self, tmp_path, caplog):
        """The old rules stay, and the log says what is wrong, once."""

        async def change(traffic, repository):
            await traffic.promote("scale", "1")
            (tmp_path / "scale" / FILE).write_text("{")
            await traffic.follow()
            await traffic.follow()
            return repository.find("scale").version

        assert "1" == scene(tmp_path, change, 1, 2)
        assert 1 == caplog.text.count("versions.json is not applied")

    def test_a_version_that_there_is_not(self, tmp_path, caplog):
        """The log warns when the file names one."""
        opened(tmp_path, 1)
        write_traffic(tmp_path / "scale", Traffic(aliases={"blue": 9}))

        async def change(traffic, repository):
            return repository.find("scale").version

        assert "1" == scene(tmp_path, change)
        assert "names version 9 (blue), which there is not" in caplog.text

    def test_what_a_server_wrote_is_not_read_again(self, tmp_path):
        """Its own change is not a change by others."""

        async def change(traffic, repository):
            await traffic.promote("scale", "1")
            since = traffic.since("scale")
            os.utime(tmp_path / "scale" / "1")
            await traffic.follow()
            return since == traffic.since("scale")

        assert scene(tmp_path, change, 1, 2)


class TestOneVersion:
    """Loading and unloading one version."""

    def test_unloading_one_version(self, tmp_path):
        """The others still answer, and requests without a version go to them."""
        repository = opened(tmp_path, 1, 2)

        async def run():
            control = Control(repository, tmp_path, SETTINGS, load_fake)
            await control.unload("scale", "2")
            gone = names(repository), repository.find("scale").version
            await control.load("scale", "2")
            return gone, names(repository)

        gone, back = asyncio.run(run())

        assert (["scale/1 READY", "scale/2 UNAVAILABLE"], "1") == gone
        assert ["scale/1 READY", "scale/2 READY"] == back

    def test_loading_one_version_leaves_the_others_alone(self, tmp_path):
        """A version that was unloaded on purpose stays so."""
        repository = opened(tmp_path, 1, 2)
        write_bundle(tmp_path / "scale" / "3", SCALE, version=3)

        async def run():
            control = Control(repository, tmp_path, SETTINGS, load_fake)
            await control.unload("scale", "1")
            await control.load("scale", "3")
            with pytest.raises(NotFoundError, match="no version `4` of model `scale`; it has 1, 2, 3"):
                await control.load("scale", "4")
            with pytest.raises(NotFoundError, match="unknown version `4`"):
                await control.unload("scale", "4")

        asyncio.run(run())

        assert ["scale/1 UNAVAILABLE", "scale/2 READY", "scale/3 READY"] == names(repository)
        assert State.READY is repository.find("scale", "3").state

    @pytest.mark.parametrize(("given", "version"), [({}, None), ({"version": 3}, "3"), ({"version": "3"}, "3")])
    def test_the_version_in_parameters(self, given, version):
        """It may be a text or a number; Triton's own `unload_dependents` has no effect."""
        assert version == version_parameter({**given, "unload_dependents": False})

    @pytest.mark.parametrize(
        "given",
        [{"version": True}, {"version": 1.5}, {"version": ""}, {"versoin": "3"}, {"config": "{}"}, {"file:1/m": ""}],
    )
    def test_parameters_are_never_ignored(self, given):
        """An ignored version would unload every version."""
        with pytest.raises(RequestError):
            version_parameter(given)


def test_both_sides_are_compared(tmp_path):
    """Requests, failures and times are counted from the last change of the rules on, for each version."""

    def load(path, settings):
        return loaded(open_fake(ValueError("bad") if path.name == "2" else None))

    async def change(traffic, repository):
        async def ask(version, times):
            model = repository.find("scale", version)
            for _ in range(times):
                with contextlib.suppress(InferenceError):
                    await model.infer(X, ["y"], 10)

        await ask("1", 5)
        await traffic.canary("scale", "2", 10)
        await ask("1", 3)
        await ask("2", 2)
        return describe_versions(repository, "scale", traffic.since("scale"))

    found = scene(tmp_path, change, 1, 2, load=load)
    first, second = found.versions

    assert ("1", "1", "2", 10.0) == (found.answering, found.stable, found.canary.version, found.canary.percent)
    assert [("1", 3, 0, 90.0), ("2", 0, 2, 10.0)] == [
        (each.version, each.requests, each.failed, each.percent) for each in found.versions
    ]
    assert 0 < first.p50_ms <= first.p99_ms
    assert second.p50_ms is None
    assert (["stable"], ["canary"]) == (first.aliases, second.aliases)
    assert "unknown (0 samples)" == first.accuracy.state
