"""The Helm chart, by Helm's own library: it passes lint, and renders what `demi deploy kubernetes` writes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from demi.deploy.render import render_manifests
from demi.version import __version__
from tests.deploy.dockerfile import ROOT
from tests.deploy.schemas import Resource, validate
from tests.deploy.test_kubernetes import MODELS, OPTIONS, rendered

helm = pytest.importorskip("helm_python", reason="helm-python-sdk, Helm as a library, has no wheel for this machine")

CHART = ROOT / "deploy/helm/demi"
IN_FLIGHT = {"scaling": {"inFlight": {"m": 3}}}


def values_of(options: Any) -> dict[str, Any]:
    """Return the values that `demi deploy helm` writes."""
    values: dict[str, Any] = yaml.safe_load(render_manifests("helm", MODELS, options))
    return values


def render(values: dict[str, Any], name: str = "demi", namespace: str = "default") -> list[Resource]:
    """Return the resources of the chart."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name=name, namespace=namespace)
    return [
        found
        for path, text in files.items()
        if path.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found is not None
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_lint_finds_nothing(options):
    """With warnings as errors."""
    report = helm.lint(CHART, values=values_of(options), strict=True)

    assert not report["errors"]
    assert ["icon is recommended"] == [each["error"] for each in report["messages"]]


def test_lint_finds_a_wrong_value():
    """The schema of the values is checked."""
    report = helm.lint(CHART, values=IN_FLIGHT | {"device": "tpu"}, strict=True)

    assert report["errors"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_resource_follows_its_schema(options):
    """Those of custom resources included."""
    for found in render(values_of(options)):
        validate(found)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_chart_is_what_demi_deploy_writes(options):
    """The same resources, but for Helm's own labels, the namespace that a release always has, and the alerts."""
    namespace = options.namespace or "default"
    chart = [each for each in render(values_of(options), options.name, namespace) if each["kind"] != "PrometheusRule"]
    plain = rendered("kubernetes", options)
    for found in chart:
        del found["metadata"]["labels"]["app.kubernetes.io/managed-by"]
        del found["metadata"]["labels"]["helm.sh/chart"]
    for found in plain:
        found["metadata"]["namespace"] = namespace
        for trigger in found["spec"].get("triggers", []):
            query = trigger["metadata"]["query"]
            if "namespace" not in query:
                trigger["metadata"]["query"] = query.replace("{", '{namespace="default",')

    def by_kind(found: Resource) -> str:
        return str(found["kind"])

    def triggers_in_order(found: list[Resource]) -> list[Resource]:
        for each in found:
            if "triggers" in each["spec"]:
                each["spec"]["triggers"].sort(key=lambda trigger: trigger["metadata"]["query"])
        return sorted(found, key=by_kind)

    assert triggers_in_order(plain) == triggers_in_order(chart)


def test_the_default_values_need_thresholds():
    """Nobody can guess how many requests fill a batch of an unknown model."""
    with pytest.raises(helm.HelmError, match=r"set scaling\.inFlight"):
        render({})


def test_models_must_come_from_somewhere():
    """A volume, or a bucket."""
    with pytest.raises(helm.HelmError, match=r"set models\.claim, or models\.url"):
        render(IN_FLIGHT | {"models": {"claim": "", "url": ""}})


def test_settings_become_variables():
    """Any setting of the server can be given by its variable."""
    deployment = next(
        each for each in render(IN_FLIGHT | {"env": {"DEMI_SHADOW": "0.01"}}) if each["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    assert [{"name": "DEMI_SHADOW", "value": "0.01"}] == container["env"]


def test_the_alerts_are_those_of_the_plain_file():
    """A chart cannot read files outside of it, so it has a copy."""
    rule = next(each for each in render(IN_FLIGHT) if each["kind"] == "PrometheusRule")

    assert (ROOT / "deploy/alerts.yml").read_text() == (CHART / "files/alerts.yml").read_text()
    assert yaml.safe_load((ROOT / "deploy/alerts.yml").read_text()) == rule["spec"]


def test_the_chart_has_the_version_of_demi():
    """Both numbers of Chart.yaml."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert [__version__, __version__] == [chart["version"], chart["appVersion"]]
