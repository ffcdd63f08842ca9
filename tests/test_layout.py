"""The stage folders at the root and the links in the package are one tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import resdeploy

PACKAGE = Path(resdeploy.__file__).parent
STAGES = ("train", "export", "calibration", "runtime")
LONGEST_MODULE = 400

FORBID = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.skipif("site-packages" in PACKAGE.parts, reason="a wheel holds copies, not links")
@pytest.mark.parametrize("stage", STAGES)
def test_link_points_to_its_sibling_folder(stage: str) -> None:
    link = PACKAGE / stage
    assert link.is_symlink()
    assert link.resolve() == (PACKAGE.parent / stage).resolve()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("resdeploy.runtime", ("torch", "onnx", "onnx_ir", "sklearn", "matplotlib")),
        ("resdeploy.runtime.bench.worker", ("torch", "onnx", "onnx_ir")),
        ("resdeploy.calibration.observer", ("torch", "onnx", "onnx_ir")),
        ("resdeploy.cli.main", ("torch", "onnx", "onnxruntime", "numpy", "PIL", "tensorrt")),
    ],
)
def test_module_imports_without(module: str, forbidden: tuple[str, ...]) -> None:
    code = FORBID.format(forbidden=set(forbidden)) + f"import {module}\n"
    code += f"assert not set(sys.modules) & set({forbidden!r})\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runtime_serves_without_torch_or_onnx(tiny_bundle: object) -> None:
    from resdeploy.bundle.bundle import Bundle

    assert isinstance(tiny_bundle, Bundle)
    code = FORBID.format(forbidden={"torch", "onnx", "onnx_ir"}) + (
        "from resdeploy.runtime import load\n"
        f"model = load({str(tiny_bundle.path)!r})\n"
        "print(model.run(model.bundle.golden().images).shape)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "(24, 3)"


MODULES = sorted(path for stage in (".", *STAGES) for path in (PACKAGE / stage).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE
