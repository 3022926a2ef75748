"""The `parameters` of requests, inputs and outputs: simple values, and the few names that mean something here.

Names the protocol leaves to applications are passed over; so are `triton_...`, `priority` and `sequence_...`, which
change nothing for a model without state.
"""

from __future__ import annotations

from demi.server.errors import RequestError
from demi.server.protocol.answer import Wish
from demi.server.protocol.schemas import Parameter

LARGEST = 2**63 - 1
"""Of whole numbers: JSON has larger ones, but neither times nor places in memory do."""


def read_parameters(given: object, owner: str) -> dict[str, Parameter]:
    """Checked parameters of a request, an input or an output, which `owner` names; RequestError otherwise."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError(f"the parameters of {owner} must be an object")
    for name, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise RequestError(f"parameter `{name}` of {owner} must be a string, a number or a boolean")
    return given


def switch(parameters: dict[str, Parameter], name: str, owner: str, default: bool) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter `{name}` of {owner} must be true or false")
    return value


def whole_number(parameters: dict[str, Parameter], name: str, owner: str) -> int | None:
    """A parameter that is a whole number of up to 63 bits, zero or more; None where it is not given."""
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise RequestError(f"parameter `{name}` of {owner} must be a whole number, zero or more")
    if value > LARGEST:
        raise RequestError(f"parameter `{name}` of {owner} is too large")
    return value


def read_wish(parameters: dict[str, Parameter]) -> Wish:
    """The parameter `precision` of a request: `auto` (the default), `half` or `fp32`."""
    match parameters.get("precision", "auto"):
        case "auto" | "half" | "fp32" as wish:
            return wish
        case other:
            raise RequestError(
                f"parameter `precision` of the request is `{str(other)[:40]}`", hint="use auto, half or fp32"
            )
