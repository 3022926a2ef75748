"""Protection against web pages of other sites: cross-site requests and DNS rebinding.

A browser lets any page send requests to any address it can reach, this machine included, and only hides the answer from the
page. So requests caused by pages of other sites are refused before they have any effect. With DNS rebinding a page points its
own host name at this machine and so counts as same-site: a server on a loopback address therefore accepts only host names
that nobody else can own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from demi.server.errors import ForbiddenError

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods without effects; browsers hide their answers from pages of other sites."""
_OWN_SITES = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` for the server's own pages and for typed addresses. Another port counts as `same-site`."""
_MAX_CACHED_NAMES = 256
"""Host names to cache; a client can invent any number."""


class Origins:
    """The accepted origins and host names. With `guarded`, or with `hosts`, names that others could own are refused unless
    listed in `hosts`."""

    def __init__(self, hosts: Iterable[str] = (), *, guarded: bool = False) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._guarded = guarded or bool(self._hosts)
        self._known: dict[bytes, bool] = {}

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise ForbiddenError for a request from a page of another site, or with a foreign host name."""
        if self._guarded:
            self.check_host(headers.get(b"host", b""))
        if method not in _SAFE_METHODS:
            check_origin(headers)

    def check_host(self, host: bytes) -> None:
        """Raise ForbiddenError for a host name that somebody else could own."""
        known = self._known.get(host)
        if known is None:
            known = self._is_own(host)
            if len(self._known) < _MAX_CACHED_NAMES:
                self._known[host] = known
        if not known:
            raise ForbiddenError(
                "the host name of the request is not one of this server's; a page of another site may be behind it",
                hint="use localhost or an IP address, or allow the name with --allow-host",
            )

    def _is_own(self, host: bytes) -> bool:
        """Return whether a host is an IP address, a name without a dot (nobody can register one), or one of `hosts`."""
        name = name_of(host.decode("latin-1"))
        return "." not in name or name in self._hosts or name.endswith(".localhost") or is_address(name)


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Raise ForbiddenError if a page of another site caused the request.

    Browsers send `Sec-Fetch-Site` over https and to loopback addresses, and `Origin` elsewhere; other clients send neither.
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
    """Return the host name in a `Host` header, in lower case and without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Return whether a name is a loopback IP address, which only this machine can reach."""
    return is_address(address) and ipaddress.ip_address(address).is_loopback


def _foreign() -> ForbiddenError:
    return ForbiddenError(
        "requests from web pages of other sites are refused",
        hint="send the request from a program, or through a backend of your own",
    )
