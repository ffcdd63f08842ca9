"""Commands with inputs whose every foreign text holds commands for terminals, pages and logs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.cli import main
from resdeploy.errors import ResdeployError
from resdeploy.filesystem import sha256
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import parse
from resdeploy.readable_text import UNPRINTABLE
from resdeploy.result_files.verification import Verification
from tests.results import read_document
from tests.runtime.serving.conftest import local_server
from tests.samples import CLASSES, NARROW, make_classifier

# A title, a cleared screen, a bell, lines of its own, marks of direction, tags, and the syntax of
# HTML, attributes, Markdown tables, code, links, mentions, Rich and metrics.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\r\nFORGED\u2028\x85\u202e\u200f\u200b\x9b31m\U000e0041"
    "<script>alert(1)<b>\" onload=x '|`x`[i](u)![i](u)@all[red]:bomb:{{7*7}}$(id)"
)
COMMANDS = re.compile(f"[{UNPRINTABLE}]")
CPU = ("--backend", "onnxruntime-cpu")


def check(text: str) -> None:
    """Check that a terminal or a log shows `text` as it is, and that nobody forged a line."""
    found = COMMANDS.search(text.replace("\n", "").replace("\t", ""))
    assert found is None, (found, text)
    assert not re.search(r"^\W*FORGED", text, re.MULTILINE), text


def check_page(text: str) -> None:
    check(re.sub(r"(?s)<style>.*</style>", "", text))
    assert "<script" not in text
    assert '" onload' not in text


def check_markdown(text: str) -> None:
    check(text)
    text = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text)  # in a fenced block all is text
    text = re.sub(r"\\.", "", text)
    for syntax in ("<script", "@all", "](", "`x`", "|`"):
        assert syntax not in text


def walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each text in a JSON document."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(value, (dict, list)):
            yield from walk(value)
        elif isinstance(value, str) and key not in ("schema", "sha256", "encoding"):
            yield tree, key


def fits(kind: type[Any], document: Any) -> bool:
    try:
        parse(kind, document)
    except ValueError:
        return False
    return True


def spoil(document: Any, is_valid: Callable[[], bool]) -> int:
    """Append `HOSTILE` to each text of a document that may be any text; return their number."""
    spoilt = 0
    for tree, key in walk(document):
        before = tree[key]
        tree[key] = before + HOSTILE
        if is_valid():
            spoilt += 1
        else:
            tree[key] = before
    return spoilt


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle with commands in each text, and in its name."""
    folder = tmp_path_factory.mktemp("hostile") / f"b{HOSTILE}.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    analysis = json.loads((folder / "analysis.json").read_text())
    spoil(analysis, lambda: fits(Analysis, analysis))
    contents = {
        "labels.txt": "".join(name + HOSTILE.replace("\r\n", "") + "\n" for name in CLASSES),
        "analysis.json": json.dumps(analysis),
    }
    for name, text in contents.items():
        (folder / name).write_bytes(text.encode())
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    manifest["warnings"] = [{"message": "m", "hint": "h", "artifacts": [a]} for a in ("fp32", "x")]
    manifest["provenance"]["versions"][HOSTILE] = "1"
    manifest["model"]["source_tensors"] = HOSTILE

    def is_valid() -> bool:
        file.write_text(json.dumps(manifest))
        try:
            open_bundle(folder)
        except ResdeployError:
            return False
        return True

    assert spoil(manifest, is_valid) > 30
    is_valid()
    return open_bundle(folder)


@pytest.fixture(scope="module")
def images(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders and pictures with commands in their names; one picture is damaged."""
    folder = tmp_path_factory.mktemp("pictures") / f"d{HOSTILE}"
    for name in CLASSES:
        (folder / (name + HOSTILE)).mkdir(parents=True)
        for path in sorted((image_data / "val" / name).iterdir()):
            shutil.copy(path, folder / (name + HOSTILE) / f"{path.stem}{HOSTILE}.png")
    (folder / (CLASSES[0] + HOSTILE) / f"x{HOSTILE}.tiff").write_bytes(b"x")
    (folder / f"damaged{HOSTILE}.png").write_bytes(b"x")
    os.mkfifo(folder / (CLASSES[0] + HOSTILE) / f"pipe{HOSTILE}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights with commands in the names of tensors, in labels and in other metadata."""
    torch = pytest.importorskip("torch")
    state = make_classifier(NARROW, preprocessing=Preprocessing(image_size=32)).network.state_dict()
    path = tmp_path_factory.mktemp("weights") / f"w{HOSTILE}.pth"
    document = {
        "state_dict": {f"model{HOSTILE.replace('.', '')}.{name}": t for name, t in state.items()},
        "args": {"arch": HOSTILE, "labels": [HOSTILE] * 3, HOSTILE: HOSTILE},
        HOSTILE: {HOSTILE: torch.zeros(3), "architecture": HOSTILE},
    }
    torch.save(document, path)
    return path


def run(*arguments: object, outcomes: tuple[int, ...] = (0,)) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in outcomes, result.output
    check(result.stdout)
    check(result.stderr)
    if "--json" in arguments:
        read_document(result.stdout)
    return result


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_command_prints_commands(
    bundle: Bundle, images: Path, checkpoint: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    pictures = [*sorted(images.glob("*/0*"))[:2], images / f"damaged{HOSTILE}.png"]
    failed = (1,)
    run("predict", bundle.path, *pictures, *CPU, *form, outcomes=failed)
    run("inspect", checkpoint, *form)
    run("verify", bundle.path, "--data", images, *CPU, *form, outcomes=(3,))
    run("compare", bundle.path, bundle.path, *form)
    run("report", bundle.path, "-o", tmp_path / f"r{HOSTILE}.html", *form)
    for missing in (
        "predict",
        "verify",
        "bench",
        "report",
        "inspect",
        "explain",
        "train",
        "export",
    ):
        run(missing, tmp_path / HOSTILE, *form, outcomes=(1, 2))
    run("predict", bundle.path, images, outcomes=failed)
    run(f"x{HOSTILE}", outcomes=(2,))
    run("predict", bundle.path, f"--{HOSTILE}", outcomes=(2,))
    run("serve", bundle.path, "--port", f"1{HOSTILE}", outcomes=(2,))
    run("serve", bundle.path, *form, outcomes=failed)


def test_a_training_and_its_page_hold_no_commands(
    images: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / HOSTILE))
    run("doctor")
    for part in ("train", "val"):
        shutil.copytree(images, tmp_path / "data" / part, ignore=shutil.ignore_patterns("pipe*"))
    output = tmp_path / f"run{HOSTILE}"
    run("train", tmp_path / "data", "-o", output, "--init", checkpoint, "--epochs", "1",
        "--image-size", "32", "--batch-size", "24")  # fmt: skip
    check_page((output / "report.html").read_text())
    for name in ("metrics.jsonl", "unreadable.txt"):
        if (output / name).exists():
            check((output / name).read_text())


def test_no_page_holds_commands(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    result = run("verify", bundle.path, "--data", images, *CPU, "--json", outcomes=(0, 1, 3))
    document = json.loads(result.stdout)
    assert spoil(document, lambda: fits(Verification, document))
    results = tmp_path / f"v{HOSTILE}.json"
    results.write_text(json.dumps(document))
    sources = [bundle.path, results]
    page = tmp_path / "page.html"
    run("report", *sources, "-o", page)
    check_page(page.read_text())
    check_markdown(run("report", *sources, "--markdown").stdout)


def test_no_label_of_a_metric_holds_commands(tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"backend": "onnxruntime-cpu"}) as local:
            for path in (f"/v2/models/{HOSTILE}", f"/v1/classify?model={HOSTILE}"):
                await local.ask(path, b"x", {"X-Request-Id": "a\x1b\x9bb"})
            text = local.metrics()
            check(text)
            labels = [
                value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                for value in sample.labels.values()
            ]
            assert "other" in labels
            assert not any("FORGED" in value for value in labels)

    asyncio.run(scenario())
