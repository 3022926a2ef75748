"""The messages of `health.proto`; `health.pyi` has their types."""

from __future__ import annotations

from demi.server.grpc.messages import messages

globals().update(messages("health.proto"))
