"""Shared fixtures: a console that remembers, tiny bundles, a folder for what a test writes."""

from __future__ import annotations
