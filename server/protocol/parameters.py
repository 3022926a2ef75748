"""Read the `parameters` of requests, inputs and outputs.

Unknown names are ignored, since the protocol leaves them to applications; so are `triton_...`, `priority` and
`sequence_...`, which have no effect on stateless models.
"""

from __future__ import annotations

from demi.server.errors import RequestError
from demi.server.protocol.answer import RequestedPrecision
from demi.server.protocol.schemas import Parameter

LARGEST = 2**63 - 1
"""Largest whole number accepted; no duration, size or offset needs more."""


def read_parameters(given: object, owner: str) -> dict[str, Parameter]:
    """Check the parameters of `owner`, a request, input or output; RequestError if they are not simple values by name."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError(f"the parameters of {owner} must be an object")
    for name, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise RequestError(f"parameter `{name}` of {owner} must be a string, a number or a boolean")
    return given


def read_bool(parameters: dict[str, Parameter], name: str, owner: str, default: bool) -> bool:
    """Return a parameter that is true or false; RequestError if it is anything else."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter `{name}` of {owner} must be true or false")
    return value


def read_count(parameters: dict[str, Parameter], name: str, owner: str) -> int | None:
    """Return a parameter that is a whole number, zero or more, of up to 63 bits; None if absent."""
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise RequestError(f"parameter `{name}` of {owner} must be a whole number, zero or more")
    if value > LARGEST:
        raise RequestError(f"parameter `{name}` of {owner} is too large")
    return value


def read_precision(parameters: dict[str, Parameter]) -> RequestedPrecision:
    """Return the parameter `precision` of a request: `auto` (the default), `half` or `fp32`."""
    match parameters.get("precision", "auto"):
        case "auto" | "half" | "fp32" as precision:
            return precision
        case other:
            raise RequestError(
                f"parameter `precision` of the request is `{str(other)[:40]}`", hint="use auto, half or fp32"
            )
