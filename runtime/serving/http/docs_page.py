"""The page `/docs`: the OpenAPI description as HTML, without scripts and without other servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>HTTP interface · resdeploy</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h2 {{ font-size: 1.05rem; margin: 1.75rem 0 .25rem; border-top: 1px solid; padding-top: 1rem; }}
p, ul {{ margin: .25rem 0; overflow-wrap: anywhere; }}
pre {{ overflow-x: auto; }}
a {{ color: inherit; }}
</style>
</head>
<body>
<main>
<h1>HTTP interface</h1>
<p>{summary} <a href="/">Classify pictures</a> · <a href="/openapi.json">OpenAPI document</a></p>
<p>If the server needs a token, send it in the header <code>Authorization: Bearer TOKEN</code>.</p>
{operations}
<h2>Documents</h2>
{schemas}
</main>
</body>
</html>
"""


def docs_page(document: Mapping[str, Any]) -> bytes:
    """Return the page for an OpenAPI document."""
    components = document["components"]
    schemas = "\n".join(
        f'<details id="{name}"><summary>{name}</summary><pre tabindex="0" aria-label="{name}">'
        f"{escape(json.dumps(schema, indent=1))}</pre></details>"
        for name, schema in components["schemas"].items()
    )
    operations = "\n".join(
        line
        for path, item in sorted(document["paths"].items())
        for method in ("get", "post")
        if method in item
        for line in _operation(path, method, {**item, **item[method]}, item, components)
    )
    summary = escape(document["info"]["summary"])
    return PAGE.format(summary=summary, operations=operations, schemas=schemas).encode()


def _operation(
    path: str, method: str, operation: Any, item: Any, components: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation['summary'])}</p><ul>"
    for parameter in [*item.get("parameters", ()), *item[method].get("parameters", ())]:
        found = _resolved(parameter, components)
        where = f"{found['in']} <code>{escape(found['name'])}</code>"
        yield f"<li>{where}: {escape(found['description'])}</li>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<li>body <code>{escape(kind)}</code>{_link(content['schema'])}</li>"
    for status, response in operation["responses"].items():
        found = _resolved(response, components)
        links = "".join(_link(content["schema"]) for content in found["content"].values())
        yield f"<li>{status}: {escape(found['description'])}{links}</li>"
    yield "</ul>"


def _resolved(entry: Any, components: Mapping[str, Any]) -> Any:
    kind, _, name = entry.get("$ref", "").removeprefix("#/components/").partition("/")
    return components[kind][name] if name else entry


def _link(schema: Any) -> str:
    name = schema.get("items", schema).get("$ref", "").rpartition("/")[2]
    return f' (<a href="#{escape(name)}">{escape(name)}</a>)' if name else ""
