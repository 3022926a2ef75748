"""OpenVINO's words for what went wrong, without the places in its own source that they begin with."""

from __future__ import annotations

import re

_PLACES = re.compile(r"Exception from \S+:\d+:|Check '.*?' failed(?: at \S+:\d+)?:?|FrontEnd API failed with \w+:")
CANCELLED = "Infer Request was canceled"
LONGEST = 300
"""Characters of a reason: OpenVINO adds the whole history of a conversion."""


def reason(error: Exception) -> str:
    """Return an error in one line of at most 300 characters; its type if it has no words."""
    said = " ".join(_PLACES.sub(" ", str(error)).split())
    return (said if len(said) <= LONGEST else said[: LONGEST - 3] + "...") or type(error).__name__


def is_cancelled(error: Exception) -> bool:
    """Return whether a run ended since it was stopped."""
    return CANCELLED in str(error)
