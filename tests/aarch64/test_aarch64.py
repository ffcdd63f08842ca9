"""The wheel with only the dependencies of the runtime, on an emulated Arm CPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import write_manifest
from resdeploy.export.graph.residual_scales import closest_fractions
from resdeploy.runtime.model import load
from tests.aarch64 import userland
from tests.aarch64.conftest import PLAIN_SESSION, Emulated, plain_session_files
from tests.boards import BOARDS, Files, power_mode
from tests.deploy.jetson_folder import load_script, write_wheels
from tests.int8_kernels import ONNX_RUNTIME, run_kernels
from tests.results import read_document

OLDEST = ("onnxruntime-1.23.2", "runtime")
VERSIONS = [pytest.param(("runtime",), id="newest"), pytest.param(OLDEST, id="1.23.2")]

READ_POWER = """
from resdeploy.runtime.energy.meter import find_sources
from resdeploy.machine.host import Host
(source,) = find_sources(Host())
print(",".join(source.rails), round(source.read(), 6))
"""


def document(emulated: Emulated, *command: str, **options: Any) -> Any:
    """Run a command of resdeploy and return its JSON document."""
    done = emulated.run("-m", "resdeploy", *command, "--json", **options)
    assert done.returncode == 0, done.stderr
    return read_document(done.stdout)


def test_runtime_imports_without_torch_or_onnx(emulated: Emulated) -> None:
    code = (
        "import sys, platform, resdeploy.runtime; "
        "print(platform.machine(), not {'torch', 'onnx'} & set(sys.modules))"
    )
    done = emulated.run("-c", code)
    assert done.stdout == "aarch64 True\n", done.stderr


@pytest.mark.parametrize(
    ("name", "module", "power"),
    [
        ("orin-nano", "Orin Nano 8 GB", "VDD_IN 10.5336"),
        ("agx-orin", "AGX Orin", "VDD_GPU_SOC,VDD_CPU_CV,VIN_SYS_5V0 8.87"),
        ("agx-thor", "AGX Thor", "VIN 19.78"),
    ],
)
def test_doctor_recognises_the_board(
    board: Callable[[Files], Emulated], tmp_path: Path, name: str, module: str, power: str
) -> None:
    emulated = board(BOARDS[name])
    # QEMU starts programs of the host, so PATH must not be below the root of the board.
    nvpmodel = tmp_path / "bin/nvpmodel"
    nvpmodel.parent.mkdir()
    nvpmodel.write_text(f"#!/bin/sh\nprintf '{power_mode('15W', 1)}'\n")
    nvpmodel.chmod(0o755)
    found = document(emulated, "doctor", PATH=f"{nvpmodel.parent}:/usr/bin:/bin")
    platform = found["platform"]
    assert platform["architecture"] == "aarch64"
    assert platform["jetson"]["module"] == module
    assert platform["conditions"]["power_mode"] == {"name": "15W", "number": 1}
    assert any("sudo nvpmodel -m" in line for line in found["advice"])
    assert any("TensorRT" in line for line in found["advice"])  # it is missing here
    assert emulated.run("-c", READ_POWER).stdout == f"{power}\n"


def test_a_folder_installs_itself_on_a_board(
    board: Callable[[Files], Emulated], wheel: Path, tiny_bundle: Bundle, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Pack a folder, run its script as on a board, and let doctor verify the installed bundle."""
    emulated = board(BOARDS["orin-nano"])
    bundle = tmp_path / "r34.bundle"
    shutil.copytree(tiny_bundle.path, bundle)
    # Float convolutions are slow on an emulated CPU.
    manifest = replace(tiny_bundle.manifest, artifacts=(tiny_bundle.artifact("int8-cpu"),))
    write_manifest(bundle, manifest)
    pack = load_script()
    monkeypatch.setattr(pack, "collect_wheels", lambda folder, *_: write_wheels(
        folder, wheel, emulated.sites / "runtime"
    ))  # fmt: skip
    monkeypatch.setattr("sys.argv", ["pack", "6", str(bundle), "-o", "jetson"])
    pack.main()
    folder, installed = Path("jetson").absolute(), tmp_path / "installed"
    assert (folder / "target").read_text() == "jetpack=6\npython=python3.10\n"
    (folder / "target").write_text(f"jetpack=6\npython=python{userland.PYTHON}\n")
    # The host starts programs of the board only through QEMU, with the name of its own file.
    python = tmp_path / f"bin/python{userland.PYTHON}"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nexec {userland.QEMU} -0 "$0" -L {emulated.root} -cpu {userland.CPU[0]} '
        f'{emulated.root}/usr/bin/python{userland.PYTHON} "$@"\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}:/usr/bin:/bin", "PIP_NO_COMPILE": "1"}
    done = subprocess.run(
        ["sh", str(folder / "install"), str(installed)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Jetson Orin Nano" in done.stdout
    assert re.search("int8-cpu +reproduced .*bit-exact", done.stdout)
    assert open_bundle(installed / "srv/resdeploy/model.bundle").manifest == manifest
    token = installed / "etc/resdeploy/token"
    assert (token.stat().st_mode & 0o777, len(bytes.fromhex(token.read_text()))) == (0o600, 32)
    assert (installed / "etc/systemd/system/resdeploy.service").is_file()


@pytest.mark.parametrize("sites", VERSIONS)
def test_int8_is_bit_exact_with_x86(
    emulated: Emulated, digits_bundle: Bundle, sites: tuple[str, ...]
) -> None:
    found = document(emulated, "verify", str(digits_bundle.path), sites=sites)
    (line,) = found["results"]
    assert (line["rule"], line["different"], line["verdict"]) == ("bit-exact", 0, "reproduced")
    assert found["images"] == 32


def test_photograph_gets_the_predictions_of_x86(
    emulated: Emulated, digits_bundle: Bundle, tmp_path: Path
) -> None:
    picture = tmp_path / "three.jpg"
    Image.fromarray(digits_bundle.golden().images[3]).resize((320, 240)).save(picture, quality=90)
    with load(digits_bundle.path, precision="int8") as model:
        expected = model.predict(picture)
    (found,) = document(
        emulated, "predict", str(digits_bundle.path), str(picture), "--precision", "int8",
    )["results"]  # fmt: skip
    # Both JPEG decoders use the same integer arithmetic, and the graph is bit-exact.
    assert [(p["label"], p["probability"]) for p in found["predictions"]] == [
        (p.label, p.probability) for p in expected
    ]


def test_a_plain_session_of_tritons_graph_gives_the_golden_bits(
    emulated: Emulated, digits_bundle: Bundle, tmp_path: Path
) -> None:
    done = emulated.run("-c", PLAIN_SESSION, *plain_session_files(digits_bundle, tmp_path))
    assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_array_equal(logits, digits_bundle.golden().bit_exact["int8-cpu"][:8])


def test_no_kernel_saturates(emulated: Emulated, tmp_path: Path) -> None:
    def run(files: list[str]) -> None:
        done = emulated.run("-c", ONNX_RUNTIME, *files)
        assert done.returncode == 0, done.stderr

    results = run_kernels(tmp_path, run)
    assert results.inexact("plain", "pairs") == results.inexact("plain", "largest") == []


RUN_ADDITIONS = """
import sys
import numpy as np
import onnxruntime
graphs = np.load(sys.argv[1])
first, second = (grid.astype(np.uint8).reshape(1, -1) for grid in np.mgrid[:256, :256])
sums = []
for name in graphs.files:
    session = onnxruntime.InferenceSession(
        graphs[name].tobytes(), providers=["CPUExecutionProvider"]
    )
    sums.append(session.run(None, {"a": first, "b": second})[0])
np.save(sys.argv[2], np.concatenate(sums))
"""


def addition(ratios: Sequence[float], zero_points: Sequence[int]) -> bytes:
    """Return a graph that adds two uint8 tensors (1, 65536); the result has the scale 0.01."""
    constants = {}
    for name, ratio, zero in zip("abc", (*ratios, 1.0), zero_points):
        constants[f"{name}_scale"] = np.array(0.01 * ratio, np.float32)
        constants[f"{name}_zero"] = np.array(zero, np.uint8)
    node = helper.make_node(
        "QLinearAdd",
        ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "c_scale", "c_zero"],
        ["c"],
        domain="com.microsoft",
    )
    tensors = {n: helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, [1, 65536])
               for n in "abc"}  # fmt: skip
    graph = helper.make_graph(
        [node], "addition", [tensors["a"], tensors["b"]], [tensors["c"]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model


@pytest.mark.parametrize("adjusted", [True, False])
def test_additions_are_bit_exact_with_adjusted_scales(
    emulated: Emulated, tmp_path: Path, adjusted: bool
) -> None:
    """Compare all 65,536 pairs of operands for 40 pairs of scales; unadjusted scales differ."""
    generator = np.random.default_rng(0)
    graphs = {}
    for number in range(40):
        ratios = list(np.exp(generator.uniform(np.log(0.03), np.log(3.9), 2)))
        if adjusted:
            fractions = closest_fractions(ratios)
            assert fractions is not None
            ratios = fractions
        zero_points = generator.integers(0, 256, 3) * generator.integers(0, 2, 3)
        model = addition(ratios, zero_points.tolist())
        graphs[f"{number:02d}"] = np.frombuffer(model, np.uint8)
    np.savez(tmp_path / "graphs.npz", allow_pickle=False, **graphs)
    inputs, arm, x86 = (str(tmp_path / name) for name in ("graphs.npz", "arm.npy", "x86.npy"))
    subprocess.run([sys.executable, "-c", RUN_ADDITIONS, inputs, x86], check=True)
    done = emulated.run("-c", RUN_ADDITIONS, inputs, arm)
    assert done.returncode == 0, done.stderr
    different = int((np.load(arm) != np.load(x86)).sum())
    assert different == 0 if adjusted else different > 0


def test_an_engine_is_built(emulated: Emulated, tiny_bundle: Bundle, tmp_path: Path) -> None:
    report = document(
        emulated, "build", str(tiny_bundle.path), "--flavour", "tensorrt-rtx", "--batch", "1",
        sites=("rtx", "runtime"), XDG_CACHE_HOME=str(tmp_path),
    )  # fmt: skip
    assert report["int8_convs"] == report["int8_convs_expected"] == report["convs"]
    assert Path(report["engine"]).stat().st_size == report["bytes"]
