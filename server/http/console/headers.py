"""Headers of pages: a Content-Security-Policy that lets nothing but the server's own files act."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable


def _quoted(sources: Iterable[str]) -> str:
    return " ".join(f"'{source}'" for source in sources)


_COMMON = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",
}

CONSOLE = {
    **_COMMON,
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src data:; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}
"""The console: scripts and styles from its own files only, no inline ones, and nothing from other hosts."""

DOCS = {
    **_COMMON,
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Swagger UI at `/docs`, which sets styles of its own."""

REPORT_SCRIPTS = ("sha256-s+bIC00MYsNqrUHaT0L4OzoL+h1JwFHQPFad5lOdS4k=",)
"""Digests of the script that sorts the tables of a report, one for each text that it had in a release of Demi."""

REPORT = {
    **_COMMON,
    "content-security-policy": f"default-src 'none'; script-src {_quoted(REPORT_SCRIPTS)}; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-scripts",
}
"""A bundle's own page: untrusted, so it runs no script but the one that sorts its tables, sends nothing, and is of no site
(`sandbox`)."""


def with_style(css: str) -> dict[str, str]:
    """Return the headers of a page without scripts whose only style is this text."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return {
        **_COMMON,
        "cache-control": "no-store",
        "content-security-policy": f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'",
    }
