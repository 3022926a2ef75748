"""Sign-in of browsers to a server with API keys: a form for the key, and a cookie that scripts cannot read.

The cookie holds a session token (`Keys.open_session`), not the key. `SameSite=Strict` keeps it from requests that pages of
other sites cause; the checks of `origins.py` refuse those of pages on other ports of the same host.

Browsers send a host's cookies to all of its ports, so the cookie's name depends on the key: signing in to a server does not
end the session with another one on the same host, and servers with the same key share a session.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
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

COOKIE = "demi-session-"
"""Beginning of the cookie's name; the session's id follows."""

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


def has_key(headers: Headers) -> bool:
    """Return whether a request carries an API key, valid or not."""
    return b"authorization" in headers or b"x-api-key" in headers


def is_signed_in(keys: Keys, headers: Headers) -> bool:
    """Return whether a request has the cookie of a session that has not ended."""
    return bool(_sessions(keys, headers))


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
        session = keys.open_session(key, until_s)
    except UnauthorizedError as error:
        return sign_in_page(scope, to, error.message)
    return _redirect(scope, to, [_cookie(scope, COOKIE + session.id, session.token, SESSION_S)])


def answer_sign_out(keys: Keys, scope: Scope) -> HttpAnswer:
    """Return the answer to the button: the form, and the end of each session with this server."""
    names = _sessions(keys, read_headers(scope))
    return _redirect(scope, "/", [_cookie(scope, name, "", 0) for name in names])


def is_form(method: str, path: str) -> bool:
    """Return whether a request is a form to sign in or out, which needs no key."""
    return method == "POST" and path in (SIGN_IN, SIGN_OUT)


def _sessions(keys: Keys, headers: Headers) -> list[str]:
    """Return the names of the cookies that hold a session with this server."""
    now = time.time()
    sent = _cookies(headers.get(b"cookie", b"").decode("latin-1"))
    return [name for name, token in sent.items() if name.startswith(COOKIE) and keys.check_session(token, now)]


def _redirect(scope: Scope, to: str, cookies: Sequence[str]) -> HttpAnswer:
    return HttpAnswer(303, b"", {"location": _root(scope) + to, "cache-control": "no-store"}, tuple(cookies))


def _cookie(scope: Scope, name: str, value: str, age_s: int) -> str:
    secure = "; Secure" if _is_secure(scope) else ""
    return f"{name}={value}; Path=/; Max-Age={age_s}; SameSite=Strict{secure}; HttpOnly"


def _root(scope: Scope) -> str:
    """Return the application's own prefix, below another one."""
    root: str = scope.get("root_path") or ""
    return root


def _is_secure(scope: Scope) -> bool:
    """Return whether the browser speaks TLS, with this server or with the proxy before it."""
    return scope["scheme"] == "https" or read_headers(scope).get(b"x-forwarded-proto") == b"https"


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}
