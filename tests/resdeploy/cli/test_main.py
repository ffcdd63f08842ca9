"""Tests of the command line: names, exit codes and errors; other files test the work itself."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from resdeploy import __version__
from resdeploy.bundle.bundle import Bundle
from resdeploy.cli import main
from resdeploy.cli.options.console import CommandResult, command, exit_code
from resdeploy.cli.sign import SigningResult
from resdeploy.demo import DemoResult
from resdeploy.runtime.backends.tensorrt.build import BuildReport
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour
from resdeploy.runtime.file_predictions import FilePredictions
from resdeploy.runtime.verification.verify import verify as verify_bundle
from resdeploy.statistics import Verdict
from tests.results import benchmark, read_document
from tests.runtime.bench.test_benchmark_energy import use_few_short_rounds

COMMANDS = (
    "demo", "train", "inspect", "preprocess", "export", "build", "sign", "verify", "bench",
    "compare", "report", "predict", "score", "serve", "explain", "doctor",
)  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def document(*arguments: object) -> Any:
    answer = invoke(*arguments, "--json")
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    return read_document(answer.stdout)


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
        ["verify", "x.bundle", "--max-drop", "101"],
        ["verify", "x.bundle", "--max-drop", "-1"],
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
        ["predict", "x.bundle", "cat.jpg", "--csv", "a", "--jsonl", "a"],
        ["predict", "x.bundle", "--camera", "0", "--csv", "a"],
        ["build", "x.bundle", "--prune"],
        ["verify", "x.bundle", "--precision", "int4"],
        ["train", "--resume", "runs/x", "--epochs", "50"],
        ["train", "--lr", "0"],
        ["train", "--lr", "-1"],
        ["train", "--resume", "runs/x", "-o", "y"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


# verify and train check their numbers in the functions that use them.
NUMBERS = [
    pytest.param(name, option, id=f"{name} {option.opts[-1]}")
    for name, command in main.commands.items()
    if name != "train"
    for option in command.params
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1",
        "-1e-9",
        "9" * 30,
        "9" * 5000,
        "one",
        "",
        "\u0663",
        "1_0",
    ],
)
def test_a_number_without_sense_is_refused_with_the_range(
    name: str, option: click.Option, value: str
) -> None:
    parent = click.Context(main)
    context = click.Context(main.commands[name], parent=parent)
    with pytest.raises(click.BadParameter) as caught:
        option.type_cast_value(context, value)
    is_number = value.strip("-") in ("nan", "inf", "1e308") or value[-1:] == "9"
    if is_number and isinstance(option.type, click.FloatRange):
        assert re.search(r"is not in the range .* to ", caught.value.message)
    assert "\n" not in caught.value.message


def test_numbers_are_checked_before_any_work() -> None:
    assert len(NUMBERS) >= 25
    answer = invoke("bench", "x.bundle", "--seconds", "nan")
    assert answer.exit_code == 2
    assert "nan is not in the range 0.1 to 604800" in answer.stderr


@pytest.mark.parametrize("batch", ["1,8,99999999999", "0", "-1,1,1", "nan", "1,1", "9" * 5000])
def test_build_refuses_batch_sizes_without_sense(batch: str) -> None:
    answer = invoke("build", "x.bundle", "--batch", batch)
    assert answer.exit_code == 2
    assert "in ascending order from 1 to 4096" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["train", "nowhere"], "there is no folder nowhere"),
        (["train", "digits", "--lr", "inf"], "--lr is inf, not a finite number"),
        (["train", "digits", "--mixup", "inf"], "--mixup is inf, not a finite number"),
        (["train", "digits", "--freeze"], "--freeze needs a trained network"),
        (["train", "digits", "--qat"], "--qat needs a trained network"),
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
    [(Verdict.PASS, 0), (Verdict.REPRODUCED, 0), (Verdict.FAIL, 1), (Verdict.INCONCLUSIVE, 3)],
)
def test_a_verdict_has_an_exit_code(verdict: Verdict, code: int) -> None:
    assert exit_code(verdict) == code


def test_verify_on_golden_images(tiny_bundle: Bundle) -> None:
    result = document("verify", tiny_bundle.path)
    assert (result["verdict"], result["images"]) == ("reproduced", 24)
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
    assert "on 24 images; limit: a drop of 0.1 points" in answer.stdout
    assert "images decide whether the drop is at most 0.1 points, if " in (answer.stdout)


def test_compare_and_report_have_the_documented_keys(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path
    compared = document("compare", path, path, "--seconds", 0)
    assert compared["verdict"] == "pass"
    assert {"accuracy", "latency", "layers", "missing", "notices", "environment"} <= set(compared)
    assert compared["identical"] is True
    Path("comparison.json").write_text(json.dumps(compared))
    assert invoke("report", path, "comparison.json", "-o", "r.html").stdout == "r.html\n"
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert invoke("report", "comparison.json", "--markdown").stdout.startswith(
        "## Comparison of tiny.bundle (second) with tiny.bundle (first): pass"
    )
    assert document("report", path, "--force")["report"] == "report.html"


def test_predict_has_the_documented_keys(tiny_bundle: Bundle, image_data: Path) -> None:
    pictures = [image_data / "val" / "red" / f"00{index}.png" for index in range(2)]
    report = document("predict", tiny_bundle.path, *pictures, "--top", 2, "--exact")
    result = report["results"]
    assert [entry["path"] for entry in result] == [str(path) for path in pictures]
    assert len(result[0]["predictions"]) == 2
    assert set(result[0]["predictions"][0]) == {"label", "index", "probability"}
    computed = [(entry["artifact"], entry["backend"]) for entry in [report, *result]]
    assert computed == 3 * [("int8-cpu", "onnxruntime-cpu")]
    text = invoke("predict", tiny_bundle.path, *pictures, "--precision", "fp32").stdout
    assert re.search(
        r"\n2 images in \S+ m?s \(\S+ images/s\), computed by fp32 on onnxruntime-cpu\n$", text
    )


DOUBT = "warning: int8 deviates from FP32: agreement 90.6 %, limit 98 %"


@pytest.mark.slow
def test_every_command_repeats_the_warnings_of_a_bundle(
    doubtful_bundle: Bundle, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_few_short_rounds(monkeypatch)
    path, picture = doubtful_bundle.path, image_data / "val" / "red" / "000.png"
    answer = invoke("predict", path, picture)
    assert answer.stdout.splitlines()[:2] == [
        "warning: int8 deviates from FP32: agreement 90.6 %",
        f"  figures and remedies: {path}/report.html",
    ]
    first = [["explain", path, "--images", 1], ["export", path, "--triton", "repository"]]
    for arguments in first:
        answer = invoke(*arguments)
        assert answer.exit_code == 0, answer.output
        assert answer.stdout.splitlines()[:2] == [DOUBT, "  hint: calibrate on more images"]
    for arguments in (
        ["verify", path],
        ["doctor", path],
        ["bench", path, "--seconds", 0.2, "--threads", 1, "--without", "ceilings",
         *(f"--without=pytorch-{kind}" for kind in ("eager", "compile", "autocast"))],
    ):  # fmt: skip
        assert DOUBT in invoke(*arguments).stdout.splitlines()
    compared = invoke("compare", path, path, "--seconds", 0).stdout
    assert compared.count(f"warning: {path.name}: int8 deviates") == 1
    assert "[!WARNING]" in invoke("report", path, "--markdown").stdout


def test_json_holds_the_warnings(doubtful_bundle: Bundle, image_data: Path) -> None:
    path, picture = doubtful_bundle.path, image_data / "val" / "red" / "000.png"
    answer = invoke("predict", path, picture, "--json")
    found = read_document(answer.stdout)
    assert found["results"][0]["path"] == str(picture)
    assert "deviates" in found["warnings"][0]["message"]
    assert answer.stderr == ""
    assert "deviates" in document("verify", path)["warnings"][0]["message"]
    assert "deviates" in document("doctor", path)["self_test"]["warnings"][0]["message"]
    assert "deviates" in document("compare", path, path, "--seconds", 0)["warnings"][0]["message"]


def test_predict_repeats_only_warnings_about_the_graph_that_answers(
    doubtful_bundle: Bundle, image_data: Path
) -> None:
    picture = image_data / "val" / "red" / "000.png"
    answer = invoke("predict", doubtful_bundle.path, picture, "--precision", "fp16")
    assert answer.stdout.splitlines()[0] == str(picture)
    assert "warning" not in answer.output


def test_golden_images_of_a_bundle_are_replaced(tiny_bundle: Bundle, image_data: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, "copy.bundle")
    answer = invoke("export", copy, "--golden-data", image_data / "val")
    assert answer.exit_code == 1
    assert "exists already" in answer.stderr
    answer = invoke("export", copy, "--golden-data", image_data / "val", "--force")
    assert answer.exit_code == 0
    assert "compared with fp32.onnx on 24 golden images" in answer.stdout
    written = document("export", copy, "--golden-data", image_data / "val", "-o", "new.bundle")
    assert written["golden"] == {"images": 24, "origin": "data", "reference": "fp32.onnx"}
    answer = invoke("verify", "new.bundle", "--precision", "fp16")
    assert "verdict: reproduced" in answer.stdout
    assert "compared with fp32.onnx on 24 golden images" in answer.stdout
    for wrong in (["--int8"], ["--triton", "repository"], ["--image-size", 64]):
        assert invoke("export", copy, "--golden-data", image_data, *wrong).exit_code == 2


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
    half = tmp_path / "half.jpg"
    assert answer.stdout.endswith(f"2 of 4 images could not be classified; the first: {half}\n")
    assert [line.startswith("error: ") for line in answer.stderr.splitlines()] == [True, True]
    found = document(*arguments)
    assert (found["images"], found["failed"], found["first_failed"]) == (2, 2, str(half))
    assert [entry["error"] is None for entry in found["results"]] == [True, False, False, True]
    assert [len(entry["predictions"]) for entry in found["results"]] == [3, 0, 0, 3]


@pytest.mark.parametrize("output", ["link.csv", "pipe", "-", "a.jsonl"])
def test_predict_replaces_no_link_and_no_device(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path, output: str
) -> None:
    (tmp_path / "link.csv").symlink_to("target.csv")
    os.mkfifo(tmp_path / "pipe")
    tables = ["--csv", output, "--jsonl", str(tmp_path / "a.jsonl"), "--force"]
    result = invoke("predict", tiny_bundle.path, image_data / "val", *tables)
    assert result.exit_code != 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert not (tmp_path / "a.jsonl").exists()


def test_predict_writes_files_of_a_folder(tiny_bundle: Bundle, image_data: Path) -> None:
    Path("photos/.thumbs").mkdir(parents=True)
    Path("photos/notes.txt").write_text("no picture")
    Path("photos/val").symlink_to(image_data / "val")
    arguments = ["predict", tiny_bundle.path, "photos", "--csv", "p.csv", "--jsonl", "p.jsonl"]
    answer = invoke(*arguments, "--top", 9)  # more than there are classes
    assert answer.exit_code == 0, answer.output
    assert re.fullmatch(
        r"24 images in .*\n1 file skipped: hidden, or no picture\nwrote p.csv\nwrote p.jsonl\n",
        answer.stdout,
    )
    lines = [read_document(line) for line in Path("p.jsonl").read_text().splitlines()]
    with open("p.csv", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head[-1] == "probability_3"
    pictures = sorted(str(path) for path in Path("photos/val/").rglob("*.png"))
    assert [line["path"] for line in lines] == [row[0] for row in rows] == pictures
    assert [line["predictions"][0]["label"] for line in lines] == [row[1] for row in rows]
    assert [repr(line["predictions"][2]["probability"]) for line in lines] == [r[-1] for r in rows]

    refused = invoke(*arguments)
    assert (refused.exit_code, "p.csv exists already" in refused.stderr) == (1, True)
    found = document(*arguments, "--force")
    assert (found["results"], found["csv"], found["skipped"]) == (None, "p.csv", 1)
    assert invoke("predict", tiny_bundle.path, "none", "--csv", "x.csv").exit_code == 1
    assert Path("x.csv").read_text().count("\n") == 2  # with the reason


def test_documents_of_commands_that_take_long(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert document("build", "--prune")["removed"] == 0
    checked = verify_bundle(tiny_bundle, precision="fp32")
    picture = FilePredictions(path=Path("7.png"), predictions=(), backend="b", artifact="a")
    for result in (
        SigningResult(Path("model.sig")),
        BuildReport(
            engine=Path("e"), key="k", artifact="int8", flavour=Flavour.RTX, version="1", bytes=1,
            batches="1", seconds=1.0, cached=True, int8_convs_expected=1, convs=None,
            int8_convs=None,
        ),
        DemoResult(
            accuracy=97.0, bundle=tiny_bundle.path, verdict=Verdict.PASS, speedup=None, seconds=9.0,
            report=Path("r"), verification=checked, benchmark=benchmark(), prediction=picture,
        ),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            command(lambda: CommandResult(result, "")).main(["--json"])  # noqa: B023
        assert read_document(capsys.readouterr().out)["schema"] == result.schema


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
    assert {"options", "mixture", "sufficient", "agreement", "sqnr_db"} <= set(result["remedy"])


def test_doctor_has_the_documented_keys() -> None:
    result = document("doctor")
    assert {"platform", "gpu", "backends", "advice", "speeds"} <= set(result)
    assert "onnxruntime-cpu" in invoke("doctor").stdout


def test_the_package_runs_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "resdeploy", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in answer.stdout


def test_swapped_arguments_are_answered_with_the_right_command(tiny_bundle: Bundle) -> None:
    bundle = str(tiny_bundle.path)
    Path("a b.jpg").touch()
    for words, right in [
        (["predict", "a b.jpg", bundle, "2"], f"predict {bundle} 'a b.jpg' 2"),
        (["predict", "gone", bundle], f"predict {bundle} gone"),
        (["predict", *"12345", bundle], f"predict {bundle} 1 2 3 ..."),
        (["sign", "key.pem", bundle], f"sign {bundle} key.pem"),
    ]:
        answer = invoke(*words)
        assert answer.exit_code == 1
        assert answer.stderr.endswith(f"hint: the bundle comes first: main {right}\n")
    assert "comes first" not in invoke("predict", "gone", "a b.jpg").stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --resum x", "'--resum'. Did you mean '--resume' or"),
        ("verify x --max-drop abc", "'abc' is not a plain number in the range 0 to 100."),
        ("train x --lr abc", "'abc' is not a plain number in the range above 0."),
        ("train x --weight-decay 1e", "'1e' is not a plain number in the range 0 or more."),
        ("train x --epochs ten", "'ten' is not a plain integer in the range 1 or more."),
        ("train x --momentum no", "'no' is not a plain number in the range 0 to below 1."),
        ("train https://x/photos", "'https://x/photos' is a URL; this must be the path of a local"),
        ("export hf://x/a.pth", "'hf://x/a.pth' is a URL; this must be the path of a local file"),
        ("verify x --data s3://x/y", "'s3://x/y' is a URL; this must be the path of a local file"),
        ("predict x y --top 1.5", "'1.5' is not a plain integer in the range 1 to 100000."),
    ],
)
def test_usage_errors_name_the_closest_option_and_what_is_allowed(
    words: str, expected: str
) -> None:
    assert expected in invoke(*words.split()).stderr
