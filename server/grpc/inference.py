"""The messages of `inference.proto`; `inference.pyi` has their types."""

from __future__ import annotations

from demi.server.grpc.messages import messages

globals().update(messages("inference.proto"))
