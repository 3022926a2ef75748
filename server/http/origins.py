"""Which pages of a browser may ask this server: its own alone.

A browser sends what any page wants to any address that it can reach, this machine's own among them, and keeps from the
page only the answer. So a request that a page of another site has caused is refused before anything is done for it. A
page can also let its own name lead to this machine (DNS rebinding) and is then of the same site: so a server that only
this machine can reach answers only by names that nobody else can own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from demi.server.errors import ForbiddenError

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing; what they are answered with, a browser keeps from pages of other sites."""
_OWN_SITES = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` for the server's own pages, and for what a person typed. Another port is `same-site`."""
_MOST_NAMES = 256
"""How many names are remembered; a client can make up any number."""


class Origins:
    """The sites that may ask, and the names they may ask by: with `guarded`, none that others could own but `hosts`."""

    def __init__(self, hosts: Iterable[str] = (), *, guarded: bool = False) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._guarded = guarded or bool(self._hosts)
        self._known: dict[bytes, bool] = {}

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise ForbiddenError for a request that comes from a page of another site, or by another's name."""
        if self._guarded:
            self.check_host(headers.get(b"host", b""))
        if method not in _READING:
            check_origin(headers)

    def check_host(self, host: bytes) -> None:
        """Raise ForbiddenError for a name that somebody else could own."""
        known = self._known.get(host)
        if known is None:
            known = self._is_own(host)
            if len(self._known) < _MOST_NAMES:
                self._known[host] = known
        if not known:
            raise ForbiddenError(
                "the request asks for a host by a name that others could own, and a page of theirs may be behind it",
                hint="ask by localhost or an address, or allow the name with --allow-host",
            )

    def _is_own(self, host: bytes) -> bool:
        """Whether a name is an address, one without a dot, which no stranger can register, or one of the settings'."""
        name = name_of(host.decode("latin-1"))
        return "." not in name or name in self._hosts or name.endswith(".localhost") or is_address(name)


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Raise ForbiddenError where a browser says that a page of another site is behind a request.

    Browsers say so by `Sec-Fetch-Site` to https and to this machine, and elsewhere by `Origin`; other clients by neither.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        if site.strip().lower() not in _OWN_SITES:
            raise _foreign()
        return
    origin = headers.get(b"origin")
    if origin is not None and origin.strip().lower().partition(b"://")[2] != headers.get(b"host", b"").lower():
        raise _foreign()


def name_of(host: str) -> str:
    """The name in a `Host` header, without its port and in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an IP address."""
    return is_address(address) and ipaddress.ip_address(address).is_loopback


def _foreign() -> ForbiddenError:
    return ForbiddenError(
        "a page of another site asks for this, which this server refuses",
        hint="ask from a program, or through a server of your own beside the page",
    )
