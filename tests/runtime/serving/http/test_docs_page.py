"""The page of the HTTP interface: complete, and without anything that a browser must fetch."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from html import unescape
from pathlib import Path

import msgspec

from resdeploy.runtime.serving.schemas import Classification
from tests.runtime.serving.conftest import without_models
from tests.serving_process import ServerProcess, form, picture


def text_of(page: str) -> str:
    """Return a page or a part of it as a browser copies it."""
    return unescape(re.sub("<[^>]*>", "", page))


def commands(page: str) -> list[str]:
    blocks = re.findall("<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    return [line for block in blocks for line in text_of(block).splitlines() if "curl" in line]


def test_the_commands_work(server: ServerProcess, image_data: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(picture(image_data))
    (tmp_path / "notes.txt").write_text("no picture")
    answers = []
    for command in commands(server.ask("/docs").body.decode()):
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        answers.append(json.loads(done.stdout))
    one, several, body, about, tensor = answers
    assert (one["model"], one["results"][0]["image"]) == ("tiny", "picture.jpg")
    assert [bool(result["error"]) for result in several["results"]] == [False, True]
    assert body["results"][0]["predictions"] == one["results"][0]["predictions"]
    assert about["name"] == tensor["model_name"] == "tiny"
    assert tensor["outputs"][0]["shape"] == [1, 3]


def test_the_example_is_an_answer_to_the_command_with_two_files(
    server: ServerProcess, image_data: Path
) -> None:
    page = server.ask("/docs").body.decode()
    (block,) = re.findall("answer</summary><pre><code>(.*?)</code></pre>", page, re.DOTALL)
    answer = msgspec.json.decode(text_of(block), type=Classification)
    files = [("picture.jpg", picture(image_data)), ("notes.txt", b"no picture")]
    body, headers = form(*files)
    real = msgspec.json.decode(
        server.ask("/v1/classify?top=3", body, headers).body, type=Classification
    )
    for name in ("model", "backend", "artifact", "precision"):
        assert getattr(answer, name) == getattr(real, name)
    classes = [
        {(one.label, one.index) for one in reply.results[0].predictions} for reply in (answer, real)
    ]
    assert classes[0] == classes[1]
    assert answer.results[1] == real.results[1]
    assert [result.image for result in answer.results] == ["picture.jpg", "notes.txt"]
    assert "here notes.txt" in text_of(page)


def test_operations_are_objects_with_their_parameters(server: ServerProcess) -> None:
    """Parameters of a path, of which several operations have the same, are told with each."""
    page = server.ask("/docs").body.decode().replace("<wbr>", "")
    pattern = "<code>POST /v2/models/{model}/infer</code>.*?<pre><code>(.*?)</code></pre>"
    found = re.search(pattern, page, re.DOTALL)
    assert found
    assert {"$ref": "#/components/parameters/Model"} in json.loads(text_of(found[1]))["parameters"]


def test_the_commands_use_the_address_of_the_request(server: ServerProcess) -> None:
    first, *_ = commands(server.ask("/docs", headers={"Host": "machine:81"}).body.decode())
    assert first == "curl -F image=@picture.jpg 'http://machine:81/v1/classify?model=tiny&top=3'"
    assert server.ask("/docs", headers={"Host": "evil.example"}).status == 403


def test_a_server_with_a_token_names_no_model() -> None:
    async def scenario() -> None:
        with without_models({"host": "0.0.0.0"}, b"secret") as local:
            for host in ("a.example", "a'b.example", "<script>"):
                page = (await local.ask("/docs", headers={"Host": host})).body.decode()
                first, *_ = commands(page)
                assert first.startswith('curl -H "Authorization: Bearer $RESDEPLOY_TOKEN" -F ')
                shown = host if host == "a.example" else "localhost:8000"
                assert first.endswith(f"'http://{shown}/v1/classify?top=3'")
                assert "models/MODEL/infer" in text_of(page)

    asyncio.run(scenario())


def test_the_page_describes_every_operation(server: ServerProcess) -> None:
    reply = server.ask("/docs")
    page = reply.body.decode().replace("<wbr>", "")
    assert "<p>Model of this server: tiny.</p>" in page
    document = server.ask("/openapi.json").json
    for path, item in document["paths"].items():
        for method in set(item) - {"parameters"}:
            assert f"<code>{method.upper()} {path}</code>" in page
            assert item[method]["summary"] in page
    for kind, name in re.findall("#/components/([a-z]+)/([A-Za-z]+)", page):
        assert f'<summary>{name}</summary><pre id="{kind}-{name}">' in page
        assert f'<a href="#{kind}-{name}">#/components/{kind}/{name}</a>' in page
    assert not re.search(r"<script|<link|<img|url\(|@import", page)
    assert set(re.findall(r"https?://[^/]*", page)) == {f"http://127.0.0.1:{server.port}"}
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
