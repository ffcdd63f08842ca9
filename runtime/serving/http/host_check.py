"""The check of Host and Origin, against web pages that reach an open server on localhost.

A page of `evil.example` can let that name resolve to 127.0.0.1 (DNS rebinding): the browser then
takes the server for a part of the page's site, and sends the name as Host. IP addresses, names
below localhost (RFC 6761) and names without a dot cannot be rebound: no public domain has none
(ICANN prohibits dotless domains). A page of another site may also send forms, which carry Origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.request_errors import Forbidden

AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


def is_loopback(host: str) -> bool:
    """Return True if `host` is an address or name of this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def allowed_hosts(config: ServeConfig, token: bytes | None) -> Sequence[str] | None:
    """Return the additional names that a server answers to; None if it answers to all names."""
    checked = config.allow_host or (token is None and is_loopback(config.host))
    return [name.lower() for name in config.allow_host] if checked else None


def check_host(headers: Mapping[bytes, bytes], allowed: Sequence[str]) -> None:
    """Refuse a Host that may belong to another site, and the Origin of another site.

    Raises:
        Forbidden: The header is foreign or damaged.
    """
    if (value := headers.get(b"host")) is None:
        return  # no browser leaves it out
    host = _name(value)
    if host is None or not (_cannot_be_rebound(host) or host in allowed):
        raise Forbidden("the server does not answer to this Host; --allow-host adds names")
    origin = headers.get(b"origin")
    if origin is not None:
        scheme, _, authority = origin.partition(b"://")
        site = _name(authority) if scheme in (b"http", b"https") else None
        if site is None or not (site == host or is_loopback(site) or site in allowed):
            raise Forbidden("the server does not answer to pages of this Origin")


def _name(authority: bytes) -> str | None:
    found = AUTHORITY.fullmatch(authority)
    return found[1].decode().lower().removesuffix(".") if found else None


def _cannot_be_rebound(host: str) -> bool:
    if "." not in host or is_loopback(host):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
