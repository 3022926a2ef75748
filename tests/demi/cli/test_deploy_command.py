"""`demi deploy`: what it reads, where it writes, and what it refuses."""

from __future__ import annotations

import pytest
import yaml

from tests.server.bundles import MIXED, write_bundle


@pytest.fixture
def models(tmp_path):
    """A folder with two versions of one model and one of another, in the current folder."""
    write_bundle(tmp_path / "models/alpha/1", MIXED, name="alpha")
    write_bundle(tmp_path / "models/alpha/2", MIXED, name="alpha", version=2)
    write_bundle(tmp_path / "models/beta/1", MIXED, name="beta")
    return "models"


def test_prints_manifests(demi, models):
    """YAML goes to stdout, ready for `kubectl apply -f -`."""
    code, out, err = demi("deploy", "kubernetes", models)

    assert 0 == code
    assert {"Deployment", "Service", "PodDisruptionBudget", "PodMonitor", "ScaledObject", "NetworkPolicy"} == {
        each["kind"] for each in yaml.safe_load_all(out)
    }
    assert not err


def test_writes_a_file_and_applies_nothing(demi, models, tmp_path):
    """The command that applies it is named."""
    code, out, err = demi("deploy", "kserve", models, "-o", "demi.yaml")

    assert 0 == code
    assert not out
    assert "kubectl apply -f demi.yaml" in err
    found = list(yaml.safe_load_all((tmp_path / "demi.yaml").read_text()))
    assert ["alpha", "beta"] == [each["metadata"]["name"] for each in found if each["kind"] == "InferenceService"]


def test_a_file_is_not_replaced_without_force(demi, models, tmp_path):
    """Somebody may have edited it."""
    (tmp_path / "demi.yaml").write_text("mine")

    code, _, err = demi("deploy", "kubernetes", models, "-o", "demi.yaml")

    assert 2 == code
    assert "--force" in err
    assert "mine" == (tmp_path / "demi.yaml").read_text()
    assert 0 == demi("deploy", "kubernetes", models, "-o", "demi.yaml", "--force")[0]


def test_memory_follows_the_files_of_all_versions(demi, tmp_path):
    """A server loads every version that it finds."""
    requests = []
    for version in (1, 2):
        bundle = write_bundle(tmp_path / f"models/big/{version}", MIXED, name="big", version=version)
        manifest = (bundle / "manifest.json").read_text()
        size = (bundle / "model.onnx").stat().st_size
        (bundle / "manifest.json").write_text(
            manifest.replace(f'"bytes":{size}', '"bytes":104857600').replace(f'"bytes": {size}', '"bytes": 104857600')
        )
        _, out, _ = demi("deploy", "kubernetes", "models")
        deployment = next(yaml.safe_load_all(out))
        requests.append(deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"])

    assert ["640Mi", "896Mi"] == requests


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", "Demi"], "the name `Demi` is not a name that Kubernetes takes"),
        (["--namespace", "a/b"], "the namespace `a/b`"),
        (["--models-from", "/models"], "`/models` is not a place of models"),
        (["--models-from", 'pvc://x"\n'], "is not a place of models"),
        (["--replicas", "3:2"], "`3:2` is not a range of replicas"),
        (["--replicas", "0"], "`0` is not a range of replicas"),
        (["--without", "monitors"], "there is no part `monitors`"),
        (["--api-keys", "a b"], "the api keys `a b`"),
    ],
)
def test_wrong_choices_are_refused(demi, models, arguments, reason):
    """Before anything is written."""
    code, out, err = demi("deploy", "kubernetes", models, *arguments)

    assert 2 == code
    assert not out
    assert reason in err


def test_a_model_that_kserve_cannot_name(demi, tmp_path):
    """An InferenceService is named like its model."""
    write_bundle(tmp_path / "models/Mixed_1/1", MIXED, name="Mixed_1")

    code, _, err = demi("deploy", "kserve", "models")

    assert 2 == code
    assert "the model's name `Mixed_1`" in err
    assert 0 == demi("deploy", "kubernetes", "models")[0]


def test_two_models_of_one_name(demi, tmp_path):
    """A server could serve one of them only."""
    write_bundle(tmp_path / "models/a/1", MIXED, name="same")
    write_bundle(tmp_path / "models/b/1", MIXED, name="same")

    code, _, err = demi("deploy", "kubernetes", "models")

    assert 2 == code
    assert "two bundles are version 1 of `same`" in err


def test_no_model(demi, tmp_path):
    """A folder without bundles, and one that does not exist."""
    (tmp_path / "empty").mkdir()

    assert "the folder holds no bundle" in demi("deploy", "kubernetes", "empty")[2]
    assert "no such folder" in demi("deploy", "kubernetes", "nowhere")[2]
