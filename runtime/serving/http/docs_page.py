"""The page `/docs`: the OpenAPI description as HTML, without scripts and without other servers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>HTTP interface · resdeploy</title>
<style>
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2, summary { overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.25rem 0 0; }
pre { overflow-x: auto; }
a { color: inherit; }
</style>
</head>
<body>
<main>
<h1>HTTP interface</h1>
<p>If the server needs a token, send it in the header <code>Authorization: Bearer TOKEN</code>.
<a href="/">Classify pictures</a>, <a href="/openapi.json">OpenAPI document</a></p>
"""


def docs_page(document: Mapping[str, Any]) -> bytes:
    """Return the page for an OpenAPI document: its operations, and the parts that they refer to."""
    lines = []
    for path, item in sorted(document["paths"].items()):
        for method in sorted({"get", "post"} & set(item)):
            shared = {"parameters": item["parameters"]} if "parameters" in item else {}
            lines.append(f"<h2><code>{method.upper()} {path}</code></h2>")
            lines.append(_entry(item[method]["summary"], [shared, item[method]]))
    for kind, parts in document["components"].items():
        lines.append(f"<h2>{kind}</h2>")
        lines += [_entry(name, part) for name, part in parts.items()]
    return (HEAD + "\n".join(lines) + "\n</main>\n</body>\n</html>\n").encode()


def _entry(title: str, content: Any) -> str:
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<pre tabindex="0" aria-label="{escape(title)}">{escape(text)}</pre></details>'
    )
