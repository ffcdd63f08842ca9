"""Tests of the command line: names, exit codes and errors; other files test the work itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from resdeploy import __version__
from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.console import ExitCode, exit_code
from resdeploy.cli.main import main
from resdeploy.statistics import Verdict

COMMANDS = (
    "demo", "train", "export", "build", "verify", "bench", "compare", "report", "predict", "serve",
    "explain", "doctor",
)  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def document(*arguments: object) -> Any:
    answer = invoke(*arguments, "--json")
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    return json.loads(answer.stdout)


def test_the_commands_have_their_documented_names() -> None:
    assert tuple(main.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(command: str) -> None:
    answer = invoke(command, "--help")
    assert answer.exit_code == 0
    assert "--json" in answer.output
    assert "--debug" in answer.output
    options = [p for p in main.commands[command].params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_help_names_every_command_and_the_version() -> None:
    listing = invoke("-h").output
    assert all(command in listing for command in COMMANDS)
    assert invoke("--version").output == f"resdeploy, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["teleport"],
        ["train", "--epochs", "0"],
        ["train", "--epochs", "many"],
        ["train", "--shortcut", "D"],
        ["export", "--calibrator", "magic"],
        ["verify"],
        ["predict", "x.bundle"],
        ["compare", "one.bundle"],
        ["compare", "one.bundle", "two.bundle", "--max-drop", "-1"],
        ["report"],
        ["serve"],
        ["serve", "x.bundle", "--port", "99999"],
        ["serve", "x.bundle", "--tls-cert", "x.pem"],
        ["serve", "x.bundle", "--tls-key", "x.pem"],
        ["bench", "x.bundle", "--batch", "0"],
        ["bench", "x.bundle", "--within", "narrow"],
        ["bench", "x.bundle", "--images", "photos"],
        ["bench", "x.bundle", "--also", "tflite"],
        ["explain", "x.bundle", "--batch", "2"],
        ["explain", "x.bundle", "--slow", "--images", "2"],
        ["build"],
        ["build", "x.bundle", "--batch", "8,1,32"],
        ["build", "x.bundle", "--batch", "many"],
        ["predict", "x.bundle", "cat.jpg", "--camera", "0"],
        ["predict", "x.bundle", "cat.jpg", "--frames", "3"],
        ["build", "x.bundle", "--prune"],
        ["verify", "x.bundle", "--precision", "int4"],
        ["train", "--resume", "runs/x", "--epochs", "50"],
        ["train", "digits", "--resume", "runs/x"],
        ["train", "--resume", "runs/x", "-o", "y"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["train", "nowhere"], "nowhere has no folder 'train'"),
        (["train", "digits", "--lr", "0"], "lr is 0.0"),
        (["train", "digits", "--init", "none.pth"], "there is no checkpoint at none.pth"),
        (["train", "--resume", "nowhere"], "nowhere cannot be resumed"),
        (["export"], "there is no finished run here"),
        (["export", "weights.pth"], "there is no checkpoint at weights.pth"),
        (["verify", "none.bundle"], "none.bundle does not exist"),
        (["bench", "none.bundle"], "none.bundle does not exist"),
        (["build", "none.bundle"], "none.bundle does not exist"),
        (["explain", "none.bundle"], "none.bundle does not exist"),
        (["compare", "a.json", "b.json"], "a.json cannot be read: No such file"),
        (["report", "a.json"], "a.json cannot be read: No such file"),
        (["predict", "none.bundle", "a.png"], "none.bundle does not exist"),
    ],
)
def test_errors_are_one_line_and_a_hint(arguments: list[str], cause: str) -> None:
    answer = invoke(*arguments)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("wrote ")]
    assert [line.split(":")[0] for line in lines] in (["error", "hint"], ["error"])
    assert cause in lines[0]
    assert os.listdir() == []


def test_force_never_deletes_a_users_folder(tiny_checkpoint: Path) -> None:
    Path("photos").mkdir()
    Path("photos/cat.jpg").touch()
    for arguments in (
        ["train", "digits", "-o", "photos", "--force"],
        ["export", tiny_checkpoint, "-o", "photos", "--force"],
    ):
        answer = invoke(*arguments)
        assert answer.exit_code == 1
        assert "was not written by resdeploy" in answer.stderr
    assert os.listdir("photos") == ["cat.jpg"]


def test_an_existing_run_or_bundle_is_kept_without_force(tiny_checkpoint: Path) -> None:
    for name in ("taken", "taken.bundle"):
        Path(name).mkdir()
        Path(name, "something").touch()
    for arguments in (
        ["train", "digits", "-o", "taken"],
        ["export", tiny_checkpoint, "-o", "taken.bundle"],
    ):
        answer = invoke(*arguments)
        assert answer.exit_code == 1
        assert "exists already" in answer.stderr
        assert "--force" in answer.stderr


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.PASS, ExitCode.OK), (Verdict.FAIL, ExitCode.FAILED), (Verdict.INCONCLUSIVE, 3)],
)
def test_a_verdict_has_an_exit_code(verdict: Verdict, code: int) -> None:
    assert exit_code(verdict) == code


def test_verify_on_golden_images(tiny_bundle: Bundle) -> None:
    result = document("verify", tiny_bundle.path)
    assert (result["verdict"], result["images"]) == ("pass", 24)
    assert [line["precision"] for line in result["results"]] == ["fp32", "fp16", "int8", "int8"]


def test_verify_with_data_has_the_documented_keys(tiny_bundle: Bundle, image_data: Path) -> None:
    answer = invoke("verify", tiny_bundle.path, "--data", image_data, "--json", "--max-drop", 100)
    result = json.loads(answer.stdout)
    assert (result["verdict"], answer.exit_code) == ("pass", 0)
    assert {
        "backend", "precision", "encoding", "top1", "baseline_top1", "drop", "drop_upper95",
        "agreement", "sqnr_db", "mcnemar_p", "images_to_decide",
    } <= set(result["results"][0])  # fmt: skip


def test_too_few_images_exit_with_3(tiny_bundle: Bundle, image_data: Path) -> None:
    answer = invoke("verify", tiny_bundle.path, "--data", image_data, "--max-drop", 0.1)
    assert answer.exit_code == 3
    assert "verdict: inconclusive on 24 images" in answer.stdout
    assert "images would decide, if predictions change as often" in answer.stdout


def test_compare_and_report_have_the_documented_keys(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path
    compared = document("compare", path, path, "--seconds", 0)
    assert compared["verdict"] == "pass"
    assert {"accuracy", "latency", "layers", "missing", "notices", "environment"} <= set(compared)
    Path("comparison.json").write_text(json.dumps(compared))
    assert invoke("report", path, "comparison.json", "-o", "r.html").stdout == "r.html\n"
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert invoke("report", "comparison.json", "--markdown").stdout.startswith(
        "## comparison: pass"
    )
    assert document("report", path, "--force")["report"] == "report.html"


def test_predict_has_the_documented_keys(tiny_bundle: Bundle, image_data: Path) -> None:
    pictures = [image_data / "val" / "red" / f"00{index}.png" for index in range(2)]
    result = document("predict", tiny_bundle.path, *pictures, "--top", 2)
    assert [entry["image"] for entry in result] == [str(path) for path in pictures]
    assert len(result[0]["predictions"]) == 2
    assert set(result[0]["predictions"][0]) == {"label", "index", "probability"}


def test_predict_names_a_damaged_picture(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
    answer = invoke("predict", tiny_bundle.path, tmp_path / "half.jpg")
    assert answer.exit_code == 1
    assert "half.jpg cannot be decoded" in answer.stderr


def test_predict_classifies_the_other_pictures(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
    good = image_data / "val" / "red" / "000.png"
    arguments = ("predict", tiny_bundle.path, good, tmp_path / "half.jpg", tmp_path / "none", good)
    answer = invoke(*arguments)
    assert answer.exit_code == 1
    assert answer.stdout.count(f"{good}\n") == 2
    assert answer.stdout.endswith("2 of 4 images could not be decoded\n")
    assert [line.startswith("error: ") for line in answer.stderr.splitlines()] == [True, True]
    documents = json.loads(invoke(*arguments, "--json").stdout)
    assert [entry["error"] is None for entry in documents] == [True, False, False, True]
    assert [len(entry["predictions"]) for entry in documents] == [3, 0, 0, 3]


def test_a_picture_without_permission_does_not_stop_the_others(
    tiny_bundle: Bundle, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, which can read every file. Click must not check the permission.
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not str(path).endswith(".png"))
    good = image_data / "val" / "red" / "000.png"
    assert invoke("predict", tiny_bundle.path, good).exit_code == 0


@pytest.mark.parametrize("encoding", ["tensorrt", "cpu"])
def test_explain_has_the_documented_keys(tiny_bundle: Bundle, encoding: str) -> None:
    result = document("explain", tiny_bundle.path, "--encoding", encoding, "--images", 2)
    assert {"tensor", "kind", "sqnr_alone_db", "gain_db"} <= set(result["layers"][0])
    assert result["encoding"] == encoding


def test_doctor_has_the_documented_keys() -> None:
    result = document("doctor")
    assert {"platform", "gpu", "backends", "advice"} <= set(result)
    assert "onnxruntime-cpu" in invoke("doctor").stdout


def test_the_package_runs_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "resdeploy", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in answer.stdout
