"""The OpenAPI document against the server: schemathesis sends valid and invalid requests."""

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
    """Send requests of one operation and check each answer against the document."""

    @CHECKED
    @given(operation.as_strategy(generation_mode=mode), NAMES)
    def ask(case, name):
        if name and "model" in (case.path_parameters or {}):
            case.path_parameters |= {"model": name} | ({"version": "1"} if "version" in case.path_parameters else {})
        # What a model takes is beyond the document, so that a request which it allows may be 400.
        case.call_and_validate(base_url=server.url, timeout=10, excluded_checks=[positive_data_acceptance])

    ask()


def test_every_operation_is_tested():
    """All operations are tested, inference included."""
    assert {"POST /v2/models/{model}/infer", "GET /v2/health/live", "GET /metrics"} <= set(OPERATIONS)


UNSUPPORTED = "POST /v2/cudasharedmemory/region/{region}/register"
"""Answers 501 to everyone, as documented, which schemathesis takes for a failure of the server."""


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label != UNSUPPORTED])
def test_valid_requests(server, label):
    """Valid requests get documented statuses, content types and bodies, and no server errors."""
    check(server, OPERATIONS[label], GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    "label", [label for label in OPERATIONS if label.startswith("POST") and OPERATIONS[label].body]
)
def test_invalid_requests(server, label):
    """Invalid bodies and headers get documented errors."""
    check(server, OPERATIONS[label], GenerationMode.NEGATIVE)


def test_the_check_can_fail(server):
    """The check finds an answer that does not match the document."""
    document = create_app(Repository([]), ServeSettings()).openapi()
    answer = document["paths"]["/v2/health/live"]["get"]["responses"]["200"]["content"]["application/json"]
    answer["schema"] = {"type": "array"}
    operation = schemathesis.openapi.from_dict(document)["/v2/health/live"]["GET"]
    with pytest.raises(FailureGroup):
        check(server, operation, GenerationMode.POSITIVE)


def test_keys_are_documented_if_required():
    """With API keys the document has a security scheme."""
    document = create_app(Repository([]), ServeSettings(), keys=Keys(["k" * 20])).openapi()

    assert [{"bearer": []}] == document["security"]
    assert "bearer" in document["components"]["securitySchemes"]
    assert "security" not in create_app(Repository([]), ServeSettings()).openapi()
