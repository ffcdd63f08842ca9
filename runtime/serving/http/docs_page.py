"""The page `/docs`: commands for this server, and its OpenAPI description, without scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from resdeploy.predictions import Prediction
from resdeploy.runtime.serving.config import TOKEN_VARIABLE
from resdeploy.runtime.serving.schemas import Classification, PictureClasses, StageMilliseconds

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>HTTP interface · resdeploy</title>
"""
BODY = """</head>
<body>
<header><h1>HTTP interface</h1><a href="/">Classify pictures in the browser</a></header>
<main>
"""
END = """</main>
</body>
</html>
"""
TITLES = {"schemas": "Schemas", "parameters": "Parameters", "responses": "Error responses"}
MAX_MODELS = 20  # that the page names
IMAGE_SIZE = (224, 224)  # in the example, if the model's size is not known
PROBABILITIES = (0.98, 0.01, 0.004)
REFUSED = (
    "the image cannot be decoded: cannot identify image file; use a complete JPEG, PNG, WebP or "
    "BMP file"
)


def example_answer(
    model: str, labels: Sequence[str], backend: str, artifact: str, precision: str
) -> Classification:
    """Return the form of an answer of a model to a picture and a text file."""
    found = [
        Prediction(label=label, index=index, probability=probability)
        for index, (label, probability) in enumerate(zip(labels, PROBABILITIES))
    ]
    return Classification(
        model=model,
        backend=backend,
        artifact=artifact,
        precision=precision,
        batch=1,
        milliseconds=StageMilliseconds(decode=1.2, queue=0.1, inference=6.4),
        results=[PictureClasses("picture.jpg", found), PictureClasses("notes.txt", [], REFUSED)],
    )


# For a server whose models are not named or not loaded.
EXAMPLE = example_answer(
    "MODEL", ("class 0", "class 1", "class 2"), "onnxruntime-cpu", "int8-cpu", "int8"
)


class DocsPage:
    """The page; only its commands depend on the request."""

    def __init__(self, style: str, document: Mapping[str, Any], *, needs_token: bool) -> None:
        """Prepare the page with a style sheet for an OpenAPI document."""
        self._head = f"{HEAD}<style>{style}</style>\n{BODY}"
        self._reference = _reference(document)
        self._needs_token = needs_token

    def render(
        self,
        url: str,
        models: Sequence[str] = (),
        image_size: tuple[int, int] = IMAGE_SIZE,
        example: Classification = EXAMPLE,
    ) -> bytes:
        """Return the page with commands for the server at `url`, without a slash at its end.

        Args:
            url: Scheme, host and port that the client uses.
            models: Names of the models, of which the commands use the first one.
            image_size: Height and width of the first model's input.
            example: Form of an answer to the command with two files.
        """
        answer = msgspec.json.format(msgspec.json.encode(example), indent=2).decode()
        commands = _examples(url, models, image_size, answer, needs_token=self._needs_token)
        return (self._head + commands + self._reference + END).encode()


def style_of(page: str) -> str:
    """Return the style sheet of a page."""
    found = re.search("<style>(.*?)</style>", page, re.DOTALL)
    return found[1] if found else ""


def _examples(
    url: str, models: Sequence[str], size: tuple[int, int], answer: str, *, needs_token: bool
) -> str:
    token = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if needs_token else ""
    model = models[0] if models else ""  # it has no character that a URL escapes
    query = f"?model={model}&top=3" if model else "?top=3"
    classify = shlex.quote(f"{url}/v1/classify{query}")
    about = f"{url}/v2/models/{model or 'MODEL'}"
    shape = [1, *size, 3]
    tensor = (
        "{'name': 'images', 'datatype': 'UINT8', "
        f"'shape': {shape}, 'data': [0] * {3 * size[0] * size[1]}}}"
    )
    script = f"import json; print(json.dumps({{'inputs': [{tensor}]}}))"
    named = ", ".join(models[:MAX_MODELS]) + (", and others" if len(models) > MAX_MODELS else "")
    served = f"<p>Model of this server: {escape(named)}.</p>"
    if len(models) > 1:
        served = f"<p>Models of this server: {escape(named)}. The first one is the default.</p>"
    secret = (
        f"<p>This server needs a token: let the variable {TOKEN_VARIABLE} hold it. MODEL is one of "
        "the names that /v2/models lists.</p>"
    )
    parts = [
        '<section class="wide commands"><h2>Classify a picture</h2>',
        _code(f"curl{token} -F image=@picture.jpg {classify}"),
        secret if needs_token else served if models else "",
        "<p>A form may have several pictures; one that cannot be decoded, here notes.txt, then has "
        "an error instead of classes. A single picture may be the body itself. Pictures in JSON, "
        "as base64, are not accepted.</p>",
        _code(
            f"curl{token} -F a=@picture.jpg -F b=@notes.txt {classify}",
            f"curl{token} --data-binary @picture.jpg {classify}",
        ),
        "<details><summary>Example of an answer</summary>"
        f"<pre><code>{escape(answer)}</code></pre></details></section>",
        '<section class="wide"><h2>Send a tensor</h2>',
        "<p>The Open Inference Protocol takes images of the model's size as RGB values, here a "
        "black one in JSON, and returns the logits. The first command shows the size:</p>",
        _code(
            f"curl{token} {shlex.quote(about)}",
            f'python3 -c "{script}" | curl{token} --data-binary @- {shlex.quote(about + "/infer")}',
        ),
        "</section>",
    ]
    return "\n".join(parts) + "\n"


def _reference(document: Mapping[str, Any]) -> str:
    """Return the operations of an OpenAPI document, and the parts that they refer to."""
    lines = [
        '<section class="wide"><h2>All operations</h2>',
        '<p>The <a href="/openapi.json">OpenAPI document</a> describes the same for programs. If '
        "the server needs a token, send it in the header <code>Authorization: Bearer "
        "TOKEN</code>.</p>",
    ]
    for path, item in sorted(document["paths"].items(), key=_order):
        for method in sorted({"get", "post"} & set(item)):
            operation = item[method]
            if "parameters" in item:
                parameters = [*item["parameters"], *operation.get("parameters", ())]
                operation = {**operation, "parameters": parameters}
            code = f"<code>{method.upper()} {_breakable(path)}</code>"
            lines.append(_entry(f"{code} {escape(operation['summary'])}", operation))
    lines.append("</section>")
    for kind, parts in document["components"].items():
        lines.append(f'<section class="wide reference"><h2>{TITLES.get(kind, "Access")}</h2>')
        lines += [_entry(name, part, f"{kind}-{name}") for name, part in parts.items()]
        lines.append("</section>")
    return "\n".join(lines) + "\n"


def _order(item: tuple[str, object]) -> tuple[bool, str]:
    return not item[0].startswith("/v"), item[0]  # probes and metrics come last


def _entry(title: str, content: Any, identifier: str = "") -> str:
    """Return a part of the document as JSON with links to the parts that it refers to.

    A browser opens it to show the element with `identifier`, which therefore lies inside.
    """
    text = escape(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
    text = re.sub(r"#/components/(\w+)/(\w+)", r'<a href="#\1-\2">\g<0></a>', text)
    pre = f'<pre id="{identifier}">' if identifier else "<pre>"
    return f"<details><summary>{title}</summary>{pre}<code>{text}</code></pre></details>"


def _code(*commands: str) -> str:
    return "\n".join(f"<pre><code>{_breakable(command)}</code></pre>" for command in commands)


def _breakable(command: str) -> str:
    """Return HTML whose lines break between words and after slashes, but not within options."""
    text = re.sub(r"(?<=[^/\s])/(?=[^/])", "/<wbr>", escape(command))
    return re.sub(r"(?<=\s)-[\w-]+", r'<span class="option">\g<0></span>', text)
