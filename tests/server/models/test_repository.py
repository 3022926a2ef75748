"""Repository: a folder of bundles as models with versions."""

from __future__ import annotations

import shutil

import pytest

from demi.bundles import manifest as manifests
from demi.errors import BundleError, DeviceError, DigestError
from demi.server.errors import NotFoundError
from demi.server.models.model import State
from demi.server.models.repository import Repository, find_bundles, open_repository
from demi.server.settings import ServeSettings
from tests.server.bundles import MIXED, SCALE, damage, write_bundle
from tests.server.fakes import loaded, open_fake

SETTINGS = ServeSettings()


def names(repository: Repository) -> list[str]:
    """Return every model version with its state."""
    return [f"{model.name}/{model.version} {model.state.value}" for model in repository]


def load_fake(path, settings):
    """Return a loaded model for any bundle."""
    return loaded(open_fake())


def test_models_and_versions(tmp_path):
    """Every bundle below the folder is served, with versions in numeric order."""
    for version in (10, 9):
        write_bundle(tmp_path / "scale" / str(version), SCALE, version=version)
    write_bundle(tmp_path / "mixed" / "1", MIXED)
    repository = open_repository(tmp_path, SETTINGS, load_fake)

    assert ["mixed/1 READY", "scale/9 READY", "scale/10 READY"] == names(repository)
    assert "10" == repository.find("scale").version
    assert "9" == repository.find("scale", "9").version
    assert ["9", "10"] == repository.versions("scale")
    assert repository.ready


def test_one_bundle_or_one_model_given_directly(tmp_path):
    """The folder of a bundle or of a model can be given, whatever its name."""
    write_bundle(tmp_path / "any" / "1", SCALE)
    write_bundle(tmp_path / "any" / "2", SCALE, version=2)
    shutil.copytree(tmp_path / "any" / "2", tmp_path / "copy")

    assert ["scale/2 READY"] == names(open_repository(tmp_path / "copy", SETTINGS, load_fake))
    assert ["scale/1 READY", "scale/2 READY"] == names(open_repository(tmp_path / "any", SETTINGS, load_fake))


def test_a_bundle_without_a_version_folder(tmp_path):
    """models/NAME/manifest.json is served too, under the version of its manifest."""
    write_bundle(tmp_path / "scale", SCALE, version=4)

    assert ["scale/4 READY"] == names(open_repository(tmp_path, SETTINGS, load_fake))


def test_bad_bundles_do_not_affect_the_others(tmp_path):
    """Bundles with damaged bytes, manifest, name or version are kept with their reasons, and the rest are served."""
    write_bundle(tmp_path / "good" / "1", SCALE, name="good")
    damage(write_bundle(tmp_path / "bytes" / "1", SCALE, name="bytes") / manifests.MODEL)
    (write_bundle(tmp_path / "json" / "1", SCALE, name="json") / manifests.MANIFEST).write_text("{")
    write_bundle(tmp_path / "renamed" / "1", SCALE)
    write_bundle(tmp_path / "moved" / "3", SCALE, name="moved", version=2)
    repository = open_repository(tmp_path, SETTINGS)

    assert [
        "bytes/1 UNAVAILABLE",
        "good/1 READY",
        "json/1 UNAVAILABLE",
        "moved/3 UNAVAILABLE",
        "renamed/1 UNAVAILABLE",
    ] == names(repository)
    assert "digest differs" in repository.find("bytes").reason
    assert "not valid JSON" in repository.find("json").reason
    assert "folder gives version `3`, but the manifest `2`" in repository.find("moved").reason
    assert "folder gives name `renamed`, but the manifest `scale`" in repository.find("renamed").reason
    assert repository.ready


def test_an_unexpected_error_fails_one_model(tmp_path):
    """An unexpected error of the loader fails one model; the others are served."""
    write_bundle(tmp_path / "good" / "1", SCALE, name="good")
    write_bundle(tmp_path / "odd" / "1", SCALE, name="odd")

    def load(path, settings):
        if "odd" in str(path):
            raise MemoryError
        return load_fake(path, settings)

    repository = open_repository(tmp_path, SETTINGS, load)

    assert ["good/1 READY", "odd/1 UNAVAILABLE"] == names(repository)
    assert "MemoryError" in repository.find("odd").reason


def test_the_newest_version_that_is_ready_answers(tmp_path):
    """If the newest version fails to load, the one before it answers; the newest is still available by its version."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    damage(write_bundle(tmp_path / "scale" / "2", SCALE, version=2) / manifests.MODEL)
    repository = open_repository(tmp_path, SETTINGS)

    assert "1" == repository.find("scale").version
    assert State.FAILED is repository.find("scale", "2").state


@pytest.mark.parametrize("name", ["nope", "", ".", "..", "../scale", "scale/1", "/etc", "SCALE"])
def test_names_are_looked_up_and_never_paths(tmp_path, name):
    """A model is found by its exact name only."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    repository = open_repository(tmp_path, SETTINGS, load_fake)
    with pytest.raises(NotFoundError, match="unknown model"):
        repository.find(name)


@pytest.mark.parametrize("version", ["2", "x", "", "01", "../1"])
def test_unknown_versions(tmp_path, version):
    """An unknown version is not found, number or not."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    with pytest.raises(NotFoundError, match="unknown version"):
        open_repository(tmp_path, SETTINGS, load_fake).find("scale", version)


def test_paths_without_a_bundle(tmp_path):
    """A missing folder, a file and an empty folder each have their own error."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for place, words in (("none", "no such folder"), ("file", "not a folder"), ("empty", "no bundle")):
        with pytest.raises(BundleError, match=words):
            find_bundles(tmp_path / place)


def test_drafts_are_skipped(tmp_path):
    """A bundle that is being written is in a hidden folder and is skipped."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    shutil.copytree(tmp_path / "scale", tmp_path / ".scale-x.partial")

    assert ["scale"] == [found.name for found in find_bundles(tmp_path)]


def test_no_bundle_can_be_served(tmp_path):
    """If every bundle fails, the error is the only one, or the first with the count."""
    damage(write_bundle(tmp_path / "a" / "1", SCALE, name="a") / manifests.MODEL)
    with pytest.raises(DigestError):
        open_repository(tmp_path, SETTINGS)
    damage(write_bundle(tmp_path / "b" / "1", SCALE, name="b") / manifests.MODEL)
    with pytest.raises(BundleError, match=r"none of the 2 bundles .* digest differs"):
        open_repository(tmp_path, SETTINGS)


def test_a_missing_device_is_reported_first(tmp_path):
    """If the device is missing for all models, that is the error, with its exit code."""
    write_bundle(tmp_path / "a" / "1", SCALE, name="a")
    write_bundle(tmp_path / "b" / "1", SCALE, name="b")

    def load(path, settings):
        raise DeviceError("no GPU")

    with pytest.raises(DeviceError, match="no GPU"):
        open_repository(tmp_path, SETTINGS, load)


def test_draining(tmp_path):
    """Draining ends the readiness of every model and of the server."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    repository = open_repository(tmp_path, SETTINGS, load_fake)
    repository.drain()

    assert not repository.ready
    assert ["scale/1 UNLOADING"] == names(repository)


def test_a_crashed_model_ends_readiness(tmp_path):
    """A batcher that has ended makes the server not ready, with the reason; a bundle that never loaded does not."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    damage(write_bundle(tmp_path / "bad" / "1", SCALE, name="bad") / manifests.MODEL)
    repository = open_repository(tmp_path, SETTINGS)
    assert repository.ready

    repository.find("scale").close()

    assert not repository.ready
    assert "model `scale` version 1: the model is being unloaded" == repository.reason


def test_strict_readiness(tmp_path):
    """A server with a model that failed to load is ready by default, and not with `--strict-readiness`."""
    write_bundle(tmp_path / "good" / "1", SCALE, name="good")
    write_bundle(tmp_path / "bad" / "1", SCALE, name="bad")

    def load(path, settings):
        if "bad" in path.parts:
            raise BundleError("it is damaged")
        return loaded(open_fake())

    strict = open_repository(tmp_path, ServeSettings(strict_readiness=True), load)

    assert open_repository(tmp_path, SETTINGS, load).ready
    assert "model `bad` version 1: it is damaged" == strict.reason
    strict.find("bad").retire()
    assert strict.ready, "a model that was unloaded on purpose does not count"
