"""Running models: one Session protocol, and one module for each runtime that implements it."""

from demi.runtime.base import Device, Session

__all__ = ["Device", "Session"]
