"""Browsers and API keys: the form, the cookie, Basic, and what neither opens."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie

import httpx
import pytest

from demi.server.errors import UnauthorizedError
from demi.server.http.sign_in import COOKIE as BEGINNING
from demi.server.keys import Keys
from tests.server.bundles import SCALE, write_bundle
from tests.server.console.bundles import rows
from tests.server.processes import ServerProcess, serving
from tests.server.test_keys import KEY, OTHER, write_keys

PERSON = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
INFER = "/v2/models/scale/infer"
COOKIE = BEGINNING + Keys([KEY]).open_session(KEY, 0).id


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Iterator[ServerProcess]:
    """Start a server with one API key."""
    folder = tmp_path_factory.mktemp("locked")
    keys = write_keys(folder / "keys", KEY)
    with serving(write_bundle(folder / "b", SCALE), "--api-key-file", str(keys)) as server:
        yield server


@pytest.fixture
def browser(locked) -> Iterator[httpx.Client]:
    """Open a client that keeps cookies and asks for pages, as a browser does."""
    with httpx.Client(base_url=locked.url, headers=PERSON) as client:
        yield client


def sign_in(client: httpx.Client, key: str = KEY, to: str = "/", **headers: str) -> httpx.Response:
    return client.post("/console/sign-in", params={"to": to}, data={"key": key}, headers=headers)


def cookies_of(answer: httpx.Response) -> SimpleCookie:
    return SimpleCookie("\r\n".join(answer.headers.get_list("set-cookie")))


class TestSessions:
    """Tokens of sessions."""

    KEYS = Keys([KEY, OTHER])

    def test_a_session_is_valid_until_its_end(self):
        """Any key opens a session; it ends at its time."""
        for key in (KEY, f" {OTHER}\n"):
            token = self.KEYS.open_session(key, 1000).token
            assert [True, False] == [self.KEYS.check_session(token, now) for now in (999.9, 1000)]

    def test_a_session_ends_with_its_key(self):
        """A server with other keys does not accept it; one that was restarted with the same key does."""
        token = self.KEYS.open_session(KEY, 1000).token

        assert not Keys([OTHER]).check_session(token, 0)
        assert Keys([KEY]).check_session(token, 0)

    def test_a_token_holds_no_key(self):
        """A stolen cookie does not reveal the key."""
        assert KEY not in str(self.KEYS.open_session(KEY, 1000))

    def test_keys_have_sessions_of_different_names(self):
        """Those of one key are the same on every server and at any time; another key's are others."""
        ids = [
            keys.open_session(key, until).id
            for keys, key, until in ((self.KEYS, KEY, 1), (Keys([KEY]), KEY, 2), (self.KEYS, OTHER, 1))
        ]

        assert ids[0] == ids[1] != ids[2]

    def test_a_wrong_key_opens_nothing(self):
        """The same error as for a request."""
        with pytest.raises(UnauthorizedError):
            self.KEYS.open_session(KEY[:-1], 1000)

    @pytest.mark.parametrize("change", ["later", "empty", "no end", "no signature", "signs", "long"])
    def test_forged_tokens(self, change):
        """A later end, a missing part or anything else is no session."""
        token = self.KEYS.open_session(KEY, 1000).token
        forged = {
            "later": token.replace("1000.", "2000."),
            "empty": "",
            "no end": token[4:],
            "no signature": "1000.",
            "signs": "²000." + token[5:],
            "long": "9" * 5000 + token[4:],
        }[change]

        assert not self.KEYS.check_session(forged, 0)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_person_is_asked_for_the_key(browser, path):
    """Pages answer with a form; its policy allows no script, and the answer is still 401."""
    answer = browser.get(path)

    assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
    assert f'action="/console/sign-in?to={path}"' in answer.text
    assert "script" not in answer.text
    assert "default-src 'none'; style-src 'sha256-" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/v2", "/metrics", "/console/models", "/console/assets/app.js", "/openapi.json"])
def test_programs_get_json(browser, path):
    """Everything else answers as before."""
    assert ("Bearer", ["error"]) == (
        (answer := browser.get(path)).headers["www-authenticate"],
        list(answer.json()),
    )
    assert 401 == answer.status_code


@pytest.mark.parametrize("to", ["/", "/docs"])
def test_the_key_opens_everything(browser, to):
    """After the form, the cookie opens the page that was asked for, its files, and inference on both paths."""
    answer = sign_in(browser, to=to)
    cookie = cookies_of(answer)[COOKIE]

    assert (303, to) == (answer.status_code, answer.headers["location"])
    assert (True, "Strict", "/", "") == (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"])
    assert {"signed_in": True} == browser.get("/console/session").json()
    assert KEY not in str(answer.headers)
    opened = ["/", "/docs", "/console/models", "/console/assets/app.js", "/openapi.json", "/v2"]
    assert {200} == {browser.get(path).status_code for path in opened}
    assert 200 == browser.post(INFER, json=rows(1.0)).status_code
    assert 200 == browser.post(INFER, json=rows(1.0), headers={"x-request-id": "1"}).status_code


def test_a_wrong_key_is_asked_for_again(browser):
    """The form says that the key is wrong, and sets no cookie."""
    answer = sign_in(browser, OTHER)

    assert (401, []) == (answer.status_code, answer.headers.get_list("set-cookie"))
    assert '<p role="alert">the API key is not one of this server' in answer.text


def test_signing_out(browser):
    """The button ends the cookie."""
    sign_in(browser)
    answer = browser.post("/console/sign-out")

    assert (303, "/") == (answer.status_code, answer.headers["location"])
    assert {COOKIE: "0"} == {name: cookie["max-age"] for name, cookie in cookies_of(answer).items()}
    assert 401 == browser.get("/").status_code


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "/v2", "/\r\nx: y"])
def test_the_form_leads_to_pages_of_this_server_only(browser, to):
    """Another address after signing in is replaced by the console."""
    assert "/" == sign_in(browser, to=to).headers["location"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_cannot_use_the_cookie(browser, site):
    """A page of another site, or of another port of this host, is refused although the browser sends the cookie."""
    sign_in(browser)

    assert 403 == browser.post(INFER, json=rows(1.0), headers={"sec-fetch-site": site}).status_code
    assert 403 == browser.post("/console/sign-out", headers={"sec-fetch-site": site}).status_code
    assert 403 == sign_in(browser, **{"sec-fetch-site": site}).status_code


def test_the_cookie_is_secure_behind_a_proxy_with_tls(browser):
    """With TLS at the proxy, the browser may send the cookie over TLS only."""
    answer = sign_in(browser, **{"x-forwarded-proto": "https"})

    assert [True] == [cookie["secure"] for cookie in cookies_of(answer).values()]


def test_sessions_of_other_servers_on_this_host(browser):
    """Their cookies, which browsers send to all ports of a host, open nothing here, and signing out leaves them alone."""
    theirs = BEGINNING + Keys([OTHER]).open_session(OTHER, 0).id
    browser.cookies.set(theirs, Keys([OTHER]).open_session(OTHER, int(time.time()) + 99).token)
    before = browser.get("/v2").status_code
    sign_in(browser)
    during = browser.get("/v2").status_code
    ended = cookies_of(browser.post("/console/sign-out"))

    assert (401, 200, [COOKIE]) == (before, during, list(ended))
    assert theirs in browser.cookies


@pytest.mark.parametrize(
    ("credentials", "status"),
    [(f"me:{KEY}", 200), (f":{KEY}", 200), (KEY, 401), (f"me:{OTHER}", 401), (f"{KEY}:", 401)],
)
def test_basic(locked, credentials, status):
    """Basic has the key as the password, with any name."""
    basic = "Basic " + base64.b64encode(credentials.encode()).decode()

    assert status == httpx.get(f"{locked.url}/v2", headers={"authorization": basic}).status_code


@pytest.mark.parametrize(
    "cookie",
    [f"{COOKIE}={KEY}", f"{COOKIE}={int(time.time()) + 99}.{'0' * 64}", COOKIE, "=;=", "\xff"],
    ids=["a key", "a forged token", "no value", "no name", "not ASCII"],
)
def test_cookies_that_open_nothing(locked, cookie):
    """The key itself, a forged token, and what is not a cookie."""
    assert 401 == httpx.get(f"{locked.url}/v2", headers=[(b"cookie", cookie.encode("latin-1"))]).status_code


def test_a_wrong_key_is_not_overruled_by_the_cookie(browser):
    """A request that has a key is judged by it, so that a proxy and this server check the same."""
    sign_in(browser)

    assert 401 == browser.get("/v2", headers={"x-api-key": OTHER}).status_code


@pytest.mark.parametrize("headers", [{}, {"x-api-key": KEY}], ids=["no key needed", "the key itself"])
def test_nobody_to_sign_out(client, locked, headers):
    """The page has no button to sign out where no key is needed, and where the browser sends the key itself."""
    url = locked.url if headers else client.base_url

    assert {"signed_in": False} == httpx.get(f"{url}/console/session", headers=headers).json()


def test_an_open_server_has_no_form(client):
    """Without API keys there is nothing to sign in to."""
    assert 404 == client.post("/console/sign-in", data={"key": KEY}).status_code
