"""The functions of the package: lazy, with the command line's meaning."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import resdeploy
from resdeploy import export, load, train, verify
from resdeploy.bundle.bundle import Bundle
from resdeploy.cli import main
from resdeploy.errors import BundleError, CheckpointError, DataError, TrainingError
from resdeploy.export.pipeline import ExportConfig
from resdeploy.python_api import OF_THE_CONSOLE
from resdeploy.statistics import Verdict
from resdeploy.train import config
from tests.test_layout import run_without

FUNCTIONS: dict[str, Any] = {"export": export, "train": train, "verify": verify}


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = {"numpy", "PIL", "click", "torch", "onnx", "onnxruntime"}
    run_without(heavy, "import resdeploy; resdeploy.export, resdeploy.train; dir(resdeploy)")
    run_without({"torch", "onnx"}, "from resdeploy import *; assert callable(load)")


@pytest.mark.parametrize(
    "code",
    [
        "import resdeploy; resdeploy.train(magic=1)",
        "import resdeploy.train.config; resdeploy.train(magic=1)",
        "from resdeploy.train import config; from resdeploy import train; train(magic=1)",
    ],
)
def test_the_package_of_a_stage_is_its_function_whatever_was_imported(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "TypeError: train has no option 'magic'" in done.stderr


def test_packages_and_functions_stay_what_they_are() -> None:
    assert inspect.ismodule(resdeploy.export)
    assert vars(resdeploy.train)["config"] is config
    for value in (resdeploy.export, resdeploy.train, resdeploy.verify, load, ExportConfig):
        assert pickle.loads(pickle.dumps(value)) is value
        assert copy.deepcopy(value) is value
    name = "predict"
    with pytest.raises(AttributeError, match="module 'resdeploy' has no attribute 'predict'"):
        getattr(resdeploy, name)


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items())
def test_functions_are_documented_and_take_what_the_command_takes(name: str, function: Any) -> None:
    signature = inspect.signature(function)
    text = str(inspect.unwrap(function).__doc__)
    assert all(f"{parameter}:" in text for parameter in signature.parameters)
    assert "Raises:" in text
    names = {word for p in main.commands[name].params for word in p.opts if word[:2] == "--"}
    with pytest.raises(TypeError, match=f"{name} has no option 'magic'; its options are ") as error:
        function("x", magic=1)
    listed = str(error.value).split(" are ")[1].split(", ")
    assert {"--" + word.replace("_", "-") for word in listed} == names - {*OF_THE_CONSOLE}


def test_verify_and_export_return_results(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESDEPLOY_VERIFY_MAX_DROP", "ignored")  # variables are for the command line
    result = verify(str(tiny_bundle.path), precision="int8", backend="onnxruntime-cpu", threads=1)
    assert result.verdict is Verdict.REPRODUCED
    written = export(tiny_bundle.path, triton=tmp_path / "models")
    assert written.bundle == tiny_bundle.path
    assert (tmp_path / "models").is_dir()


@pytest.mark.parametrize(
    ("name", "source", "options", "kind", "message"),
    [
        ("verify", "x", {"max_drop": 101}, ValueError, "'--max-drop': 101.0 is not in the range 0"),
        ("verify", "x", {"threads": True}, ValueError, "'True' is not a plain integer"),
        ("verify", "x", {"precision": "int4"}, ValueError, "'int4' is not one of"),
        ("verify", None, {}, ValueError, "Missing argument 'BUNDLE'"),
        ("verify", "--help", {}, BundleError, "--help does not exist"),  # no option
        ("verify", "x", {"data": None}, BundleError, "x does not exist"),
        ("train", "x", {"epochs": 0}, ValueError, "0 is not in the range"),
        ("train", "digits", {"lr": float("inf")}, TrainingError, "--lr is inf, not a finite"),
        ("train", "x", {"crop_fraction": "a\nb"}, ValueError, "is not a plain number"),
        ("train", "x", {"flip": False, "image_size": 32}, DataError, "there is no folder x"),
        ("train", None, {"resume": "x", "lr": 1}, ValueError, "leave --lr out"),
        ("export", "x", {"int8": "yes"}, ValueError, "int8 is 'yes'; it is True or False"),
        ("export", "x", {"image_size": (224, 9999)}, ValueError, "9999 is not in the range"),
        ("export", "x", {"mean": (0.5, 0.5)}, ValueError, "has 2 numbers, not 3"),
        ("export", "x", {"mean": (0.5, 0.5, 0.5), "antialias": False}, CheckpointError, "at x"),
        ("export", "x", {"o": "y"}, TypeError, "has no option 'o'"),
        ("export", "x", {"as_json": True}, TypeError, "has no option 'as_json'"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_as_on_the_command_line(
    name: str, source: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        FUNCTIONS[name](source, **options)
    assert "\n" not in str(caught.value)
