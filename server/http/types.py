"""What answers an infer request, whichever way it came: over ASGI, or straight from its connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from demi.server.errors import HttpAnswer
from demi.server.scheduling.deadlines import Gone

Target = tuple[str, str | None]
"""The name of a model, and the version where the path says one."""

Headers = dict[bytes, bytes]
"""By their lower-case names; of several with one name, the last."""

ReadBody = Callable[[], Awaitable[bytes]]
"""What waits for the whole body; raises BodyTooLargeError, and ClientDisconnect when it does not come."""

Respond = Callable[[str, Target, Headers, ReadBody, Gone], Awaitable[HttpAnswer | None]]
"""Answers a request by its method, its target, its headers, what reads its body, and what waits until the client
leaves; None when it has left."""
