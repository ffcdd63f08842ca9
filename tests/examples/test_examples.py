"""Tests that run every script of `examples/` on small inputs."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from resdeploy.bundle.bundle import Bundle
from resdeploy.export.graph.to_onnx import export_program
from tests.export.source.test_module import make_module
from tests.samples import CLASSES, COLOURS, SIZE
from tests.serving_process import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a script, and returns its exit code and its output."""

    def run_script(name: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as exit_of_script:
            if isinstance(text := exit_of_script.code, str):
                print(text)  # as Python does
            code = text if isinstance(text, int) else int(text is not None)
        return code, capsys.readouterr().out

    return run_script


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_bundle.path, "--grpc-port", 0, "--threads", 1) as process:
        yield process.until_ready()


def test_the_gallery_names_every_script_and_every_script_says_how_to_run_it() -> None:
    gallery = (EXAMPLES / "README.md").read_text()
    scripts = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert sorted(re.findall(r"\]\((\w+)\.py\)", gallery)) == scripts
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text()))
    assert tested == set(scripts)
    for name in scripts:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"\n    python examples/{name}.py " in text
        assert len(text.splitlines()) <= 55


def test_fine_tuning_ends_in_a_verified_bundle(
    run: Run, image_data: Path, narrow_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    limits = ("--epochs", 2, "--image-size", SIZE, "--max-drop", 50)
    code, output = run("fine_tune", image_data, narrow_checkpoint, "new.bundle", *limits)
    assert "top-1 accuracy; report: runs/" in output
    assert "int8 on onnxruntime-cpu: " in output
    assert code == 0
    assert Path("new.bundle/int8-cpu.onnx").is_file()


def test_a_network_of_ones_own_is_exported(run: Run, tiny_checkpoint: Path) -> None:
    Path("labels.txt").write_text("\n".join(CLASSES))
    options = ("--labels", "labels.txt", "--image-size", SIZE)
    code, output = run("own_network", tiny_checkpoint, "own.bundle", *options)
    assert (code, output.splitlines()[-1]) == (0, "own.bundle: reproduced")


def test_a_module_of_ones_own_is_exported(run: Run, image_data: Path) -> None:
    code, output = run("own_module", "own.bundle", "--photos", image_data)
    assert (code, output.splitlines()[-1]) == (0, "own.bundle: reproduced")
    assert Path("own.bundle/int8-cpu.onnx").is_file()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_graph_file_of_ones_own_is_exported(run: Run, image_data: Path, kind: str) -> None:
    network, images = make_module().eval(), torch.zeros(2, 3, SIZE, SIZE)
    batch = ({0: torch.export.Dim("batch")},)
    file = Path(f"net.{kind}")
    if kind == "pt2":
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=batch), file)
    else:
        export_program(network, images, "net").save(file)
    Path("labels.txt").write_text("\n".join(CLASSES))
    options = ("--labels", "labels.txt", "--photos", image_data)
    code, output = run("own_graph_file", file, "own.bundle", *options)
    assert (code, output.splitlines()[-1]) == (0, "own.bundle: reproduced")
    assert Path("own.bundle/int8-cpu.onnx").is_file()


def test_the_python_api_classifies_a_folder(
    run: Run, tiny_bundle: Bundle, image_data: Path
) -> None:
    folder = image_data / "val"
    code, output = run("python_api", tiny_bundle.path, folder)
    assert code == 0
    assert len(output.splitlines()) == len(list(folder.rglob("*.png")))
    Path("damaged.png").write_bytes(b"")
    assert run("python_api", tiny_bundle.path, Path()) == (1, "")


def test_a_video_is_classified(run: Run, tiny_bundle: Bundle) -> None:
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter("colours.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (SIZE, SIZE))
    for name in CLASSES:
        frame = np.full((SIZE, SIZE, 3), COLOURS[name][::-1], np.uint8)  # OpenCV writes BGR
        writer.write(frame)
        writer.write(frame)
    writer.release()
    code, output = run("camera", tiny_bundle.path, "colours.avi")
    assert code == 0
    assert re.findall("frame ([0-9]+): ([a-z]+)", output)[0][0] == "1"
    assert "6 frames, " in output


def test_the_clients_get_the_classes_of_a_picture(
    run: Run, server: ServerProcess, image_data: Path
) -> None:
    picture = image_data / "val" / "red" / "000.png"
    code, over_http = run("http_client", picture, "--url", f"http://127.0.0.1:{server.port}")
    assert code == 0
    labels = re.findall("^([a-z]+): [0-9.]+ %$", over_http, re.MULTILINE)
    assert sorted(labels) == sorted(CLASSES)
    Path("broken.jpg").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    broken = run("http_client", "broken.jpg", "--url", f"http://127.0.0.1:{server.port}")
    assert (broken[0], broken[1].count("\n")) == (1, 1)
    assert "broken.jpg: the image" in broken[1]
    pytest.importorskip("tritonclient.grpc")
    _, over_grpc = run("grpc_client", "tiny", picture, "--address", f"127.0.0.1:{server.grpc_port}")
    # The picture has the size of the input, so nothing is resized.
    assert re.findall("^([a-z]+): logit", over_grpc, re.MULTILINE) == labels


@pytest.mark.parametrize(("max_drop", "code"), [(100, 0), (0, 3)])
def test_the_gate_judges_a_bundle(
    run: Run,
    tiny_bundle: Bundle,
    image_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_drop: int,
    code: int,
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    found, output = run("ci_gate", tiny_bundle.path, image_data, "--max-drop", max_drop)
    assert found == code
    assert output.count("\n| int8 cpu |") >= 1
    assert Path("summary.md").read_text() == output
