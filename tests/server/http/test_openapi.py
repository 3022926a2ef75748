"""The OpenAPI document against the server it describes: schemathesis sends what it allows and what it does not."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from demi.server.http.app import create_app
from demi.server.keys import Keys
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings

SCHEMA = schemathesis.openapi.from_dict(create_app(Repository([]), ServeSettings()).openapi())
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
CHECKED = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
NAMES = st.sampled_from(["scale", "types", None])
"""Models that are there and well; None leaves the path as it was drawn."""


def check(server, operation, mode: GenerationMode) -> None:
    """Send some requests of one operation and hold each answer against the document."""

    @CHECKED
    @given(operation.as_strategy(generation_mode=mode), NAMES)
    def ask(case, name):
        if name and "model" in (case.path_parameters or {}):
            case.path_parameters |= {"model": name} | ({"version": "1"} if "version" in case.path_parameters else {})
        # What a model takes is beyond the document, so that a request which it allows may be 400.
        case.call_and_validate(base_url=server.url, timeout=10, excluded_checks=[positive_data_acceptance])

    ask()


def test_every_operation_is_looked_at():
    """Inference among them."""
    assert {"POST /v2/models/{model}/infer", "GET /v2/health/live", "GET /metrics"} <= set(OPERATIONS)


UNSUPPORTED = "POST /v2/cudasharedmemory/region/{region}/register"
"""Answers 501 to everyone, as documented, which schemathesis takes for a failure of the server."""


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label != UNSUPPORTED])
def test_what_is_allowed(server, label):
    """Statuses, content types and bodies are those of the document, and nothing is a failure of the server."""
    check(server, OPERATIONS[label], GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    "label", [label for label in OPERATIONS if label.startswith("POST") and OPERATIONS[label].body]
)
def test_what_is_not_allowed(server, label):
    """Bodies and headers that break the document are refused, as the document says errors are."""
    check(server, OPERATIONS[label], GenerationMode.NEGATIVE)


def test_the_check_can_fail(server):
    """An answer that is not as its document has it is told."""
    document = create_app(Repository([]), ServeSettings()).openapi()
    answer = document["paths"]["/v2/health/live"]["get"]["responses"]["200"]["content"]["application/json"]
    answer["schema"] = {"type": "array"}
    operation = schemathesis.openapi.from_dict(document)["/v2/health/live"]["GET"]
    with pytest.raises(FailureGroup):
        check(server, operation, GenerationMode.POSITIVE)


def test_keys_are_documented_where_they_are_wanted():
    """The page then has a button to enter one."""
    document = create_app(Repository([]), ServeSettings(), keys=Keys(["k" * 20])).openapi()

    assert [{"bearer": []}] == document["security"]
    assert "bearer" in document["components"]["securitySchemes"]
    assert "security" not in create_app(Repository([]), ServeSettings()).openapi()
