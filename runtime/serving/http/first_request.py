"""The first requests to a server, as a person types them."""

from __future__ import annotations

import ipaddress
import shlex
from contextlib import suppress

from resdeploy.runtime.serving.config import TOKEN_VARIABLE, ServeConfig


def page_url(config: ServeConfig, port: int) -> str:
    """Return the address of the page of the server on `port`."""
    host = config.host
    with suppress(ValueError):  # a name
        if ipaddress.ip_address(host).is_unspecified:
            host = "localhost"
    host = f"[{host}]" if ":" in host else host
    return f"{'http' if config.tls_cert is None else 'https'}://{host}:{port}/"


def first_requests(config: ServeConfig, port: int, *, needs_token: bool) -> str:
    """Return the address of the page, and commands of curl for the server on `port`."""
    url = page_url(config, port)
    curl = (
        "curl" if config.tls_cert is None else f"curl --cacert {shlex.quote(str(config.tls_cert))}"
    )
    if needs_token:
        file = config.token_file
        token = f"${TOKEN_VARIABLE}" if file is None else f"$(cat {shlex.quote(str(file))})"
        curl += f' -H "Authorization: Bearer {token}"'
    return (
        f"Open {url} in a browser ({url}docs describes the interface), or type\n"
        f"  {curl} {shlex.quote(url + 'v2/models')}\n"
        f"  {curl} -F image=@PICTURE {shlex.quote(url + 'v1/classify')}"
    )
