"""Type aliases shared by the ASGI app and the fast path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from demi.server.http.answer import HttpAnswer
from demi.server.scheduling.deadlines import Gone

Target = tuple[str, str | None]
"""The name of a model, and its version if the path contains one."""

Headers = dict[bytes, bytes]
"""Headers by lower-case name; of several with the same name, the last."""

ReadBody = Callable[[], Awaitable[bytes]]
"""Waits for the whole body; raises BodyTooLargeError, or ClientDisconnect if the client leaves before sending it all."""

Respond = Callable[[str, Target, Headers, ReadBody, Gone], Coroutine[Any, Any, HttpAnswer | None]]
"""Answers a request, given its method, target, headers, a function that reads its body, and one that waits until the client
disconnects; None if the client has disconnected."""
