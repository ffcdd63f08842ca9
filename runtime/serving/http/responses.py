"""Responses with JSON documents and with pages, and the policy under which pages run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from starlette.responses import Response

from resdeploy.runtime.serving.schemas import json_line


def json_response(
    document: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with a document in JSON."""
    return Response(json_line(document), status, headers, media_type="application/json")


def page_response(page: bytes, policy: str) -> Response:
    """Return a response with an HTML page that runs under `policy`."""
    headers = {
        "content-security-policy": policy,
        "permissions-policy": "camera=(self)",
        "referrer-policy": "no-referrer",
    }
    return Response(page, headers=headers, media_type="text/html")


def page_policy(page: bytes) -> str:
    """Return the policy that lets the page run its own script and style and use this server only.

    Source: Content Security Policy Level 3, https://www.w3.org/TR/2024/WD-CSP3-20241017/
    """
    sources = {}
    for tag in (b"script", b"style"):
        found = re.search(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        digest = hashlib.sha256(found[1] if found else b"").digest()
        sources[tag.decode()] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "img-src blob:; media-src blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
