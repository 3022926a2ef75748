"""Finding bundles, and the next version."""

import pytest

from demi.bundles.find import bundle_at, bundles_at, models_below, next_version, version_to_write
from demi.errors import BundleError
from tests.demi.bundles.making import make_bundle


@pytest.fixture
def models(tmp_path):
    """Return a folder of two models: `a` with versions 1 and 2, `b` with version 7."""
    for name, version in (("a", 1), ("a", 2), ("b", 7)):
        make_bundle(tmp_path / "models" / name, version)
    return tmp_path / "models"


def test_folders_of_models_models_and_bundles(models):
    """Each path stands for its newest bundles, or for every version."""
    newest, every = [models / "a/2", models / "b/7"], [models / "a/1", models / "a/2", models / "b/7"]

    assert newest == bundles_at(models)
    assert every == bundles_at(models, every_version=True)
    assert newest[:1] == bundles_at(models / "a")
    assert [models / "a/1"] == bundles_at(models / "a/1")
    assert [] == bundles_at(models / "none")


def test_a_folder_with_a_single_model_is_that_model(tmp_path):
    """For one bundle, a parent folder with a single model is sufficient."""
    make_bundle(tmp_path / "m", 3)

    assert tmp_path / "m/3" == bundle_at(tmp_path)


def test_a_folder_of_several_models_lists_them(models):
    """If there are several models, the error names each as the user would type it."""
    with pytest.raises(BundleError, match="holds 2 models") as caught:
        bundle_at(models)

    assert f"choose one: {models / 'a'}, {models / 'b'}" == caught.value.hint


def test_many_models_are_cut_short(tmp_path):
    """An error lists at most eight names."""
    for number in range(11):
        make_bundle(tmp_path / "models" / f"m{number:02}", 1)
    with pytest.raises(BundleError, match="holds 11 models") as caught:
        bundle_at(tmp_path / "models")

    assert caught.value.hint.endswith("m07 and 3 more")


def test_hidden_folders_are_not_models(models):
    """Hidden folders such as drafts are skipped."""
    make_bundle(models / ".draft", 1)

    assert [models / "a", models / "b"] == models_below(models)


def test_next_version(models, tmp_path):
    """The next version is one above the highest number, even if that folder is not a bundle; 1 for a new model."""
    assert [1, 3, 8] == [next_version(path) for path in (tmp_path / "new", models / "a", models / "b")]
    (models / "b" / "12").mkdir()
    assert 13 == next_version(models / "b")


def test_version_to_write(models, tmp_path):
    """The version to write is the given one, else the next; with `force`, the newest."""
    assert [1, 3, 2, 1] == [
        version_to_write(models / "a", 1, force=False),
        version_to_write(models / "a", None, force=False),
        version_to_write(models / "a", None, force=True),
        version_to_write(tmp_path / "new", None, force=True),
    ]
