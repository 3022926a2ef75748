"""Sign-in of browsers to a server with API keys: a form for the key, and a cookie that scripts cannot read.

The cookie holds a session token (`Keys.open_session`), not the key. `SameSite=Strict` keeps it from requests that pages of
other sites cause; the checks of `origins.py` refuse those of pages on other ports of the same host.
"""

from __future__ import annotations

import html
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.types import Receive, Scope

from demi.server.errors import UnauthorizedError
from demi.server.http.answer import HttpAnswer
from demi.server.http.asgi import read_headers, read_small_body
from demi.server.http.console.headers import with_style
from demi.server.http.types import Headers
from demi.server.keys import Keys

SIGN_IN, SIGN_OUT = "/console/sign-in", "/console/sign-out"

PAGES = frozenset({"/", "/docs"})
"""Pages for people: without a key they answer with the form instead of JSON."""

COOKIE, MARKER = "demi-session", "demi-signed-in"
"""The session, and a cookie without a secret by which the page knows that it can sign out."""

SESSION_S = 7 * 24 * 3600
"""Seconds until a person is asked for the key again."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 15vh auto 0; max-width: 22rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
label { display: block; margin-bottom: .3rem; }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: .45rem .7rem; border-radius: 6px; border: 1px solid #8888; }
button { margin-top: .8rem; background: #22609f; border-color: #22609f; color: #fff; font-weight: 600; cursor: pointer; }
p[role="alert"] { color: #c0392b; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demi: sign in</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>Demi</h1>
{problem}
<form method="post" action="{action}">
<label for="key">API key of this server</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
</form>
</main>
</body>
</html>
"""


def is_signed_in(keys: Keys, headers: Headers) -> bool:
    """Return whether a request has the cookie of a session that has not ended."""
    sent = headers.get(b"cookie")
    token = _cookie(sent.decode("latin-1"), COOKIE) if sent else ""
    return bool(token) and keys.check_session(token, time.time())


def wants_page(method: str, path: str, headers: Headers) -> bool:
    """Return whether a person opens one of the pages in a browser, so that a form is a better answer than JSON."""
    return method in ("GET", "HEAD") and path in PAGES and b"text/html" in headers.get(b"accept", b"")


def sign_in_page(scope: Scope, to: str, problem: str = "") -> HttpAnswer:
    """Return the form for a key, with status 401; `to` is the page that follows."""
    alert = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    page = _PAGE.format(style=_STYLE, problem=alert, action=html.escape(f"{_root(scope)}{SIGN_IN}?to={to}"))
    headers = {"content-type": "text/html; charset=utf-8", "www-authenticate": "Bearer", **with_style(_STYLE)}
    return HttpAnswer(401, page.encode(), headers)


async def answer_sign_in(keys: Keys, scope: Scope, receive: Receive) -> HttpAnswer:
    """Return the answer to the form: the page that was asked for and a cookie, or the form again if the key is wrong."""
    sent = parse_qs(scope["query_string"].decode("latin-1")).get("to", ["/"])[0]
    to = sent if sent in PAGES else "/"
    body = await read_small_body(Request(scope, receive))
    key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]
    until_s = int(time.time()) + SESSION_S
    try:
        token = keys.open_session(key, until_s)
    except UnauthorizedError as error:
        return sign_in_page(scope, to, error.message)
    return _redirect(scope, to, token, SESSION_S)


def answer_sign_out(scope: Scope) -> HttpAnswer:
    """Return the answer to the button: the form, and cookies that have ended."""
    return _redirect(scope, "/", "", 0)


def is_form(method: str, path: str) -> bool:
    """Return whether a request is a form to sign in or out, which needs no key."""
    return method == "POST" and path in (SIGN_IN, SIGN_OUT)


def _redirect(scope: Scope, to: str, token: str, age_s: int) -> HttpAnswer:
    kept = f"; Path=/; Max-Age={age_s}; SameSite=Strict{'; Secure' if _is_secure(scope) else ''}"
    cookies = (f"{COOKIE}={token}{kept}; HttpOnly", f"{MARKER}={int(bool(token))}{kept}")
    return HttpAnswer(303, b"", {"location": _root(scope) + to, "cache-control": "no-store"}, cookies)


def _root(scope: Scope) -> str:
    """Return the application's own prefix, below another one."""
    root: str = scope.get("root_path") or ""
    return root


def _is_secure(scope: Scope) -> bool:
    """Return whether the browser speaks TLS, with this server or with the proxy before it."""
    return scope["scheme"] == "https" or read_headers(scope).get(b"x-forwarded-proto") == b"https"


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
