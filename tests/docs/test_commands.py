"""Each command of the documentation exists, with its options and files, and runs where it can."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import tomllib
from click.testing import CliRunner

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli import main
from resdeploy.images.preprocessing_choice import REPORTED
from resdeploy.images.preprocessing_settings import option_for
from resdeploy.json_documents import jsonable, to_text
from tests.docs.pages import ROOT, DocumentedCommand, commands
from tests.results import benchmark
from tests.samples import write_images

COMMANDS = commands()
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Patterns of the commands that are not run here, with the reason. All others run.
NOT_RUN = {
    "make ": "the targets are run by developers and in CI",
    "pip install|python3 -m venv": "downloads packages; tests/pythons and others install the wheel",
    "python -m pytest": "a part of `make test`",
    "curl ": "fault() requires an example that tests/runtime/serving/test_examples.py runs",
    "deploy/jetson/": "downloads packages; tests/deploy/test_jetson.py has its tests",
    "cp -r '~/.cache/resdeploy/digits'": "the digits are there after `make demo`",
    "resdeploy bench": "measures for a minute; tests/journeys runs it",
    "resdeploy build": "needs TensorRT; tests/runtime/backends/tensorrt builds engines",
    r"resdeploy demo|resdeploy \w+ (runs/)?demo\b": "takes minutes; tests/resdeploy/cli has tests",
    "resdeploy doctor": "depends on the machine; tests/runtime/diagnosis has its tests",
    "resdeploy explain --slow": "measures for 4 s at least; tests/runtime/diagnosis has its tests",
    "resdeploy preprocess": "takes long; tests/export/preprocessing_search has its tests",
    "resdeploy score": "needs PyArrow, a store or Ray; tests/journeys runs it",
    "resdeploy serve": "runs until it is stopped; tests/runtime/serving starts it",
    "resdeploy train": "takes minutes; tests/journeys trains",
    "resdeploy export cifar10": "its network is not in the repository; tests/export has its tests",
    "resdeploy export (--int8|run )": "needs a run; tests/journeys exports one",
    "resdeploy export weights.pth .*--mean": "has 224 pixels; tests/export has its tests",
    r"resdeploy \w+ (runs/)?photos(\.bundle|\b)": "python -m benchmarks.tutorial runs the tutorial",
    "resdeploy export .*--int8": "takes 8 s; tests/journeys and tests/export write INT8",
    "resdeploy export .*--golden-data": "takes 3 s; tests/export/test_replace_golden.py runs it",
    "resdeploy explain": "takes 3 s; tests/export/test_noise_analysis.py runs it",
}


def reason(command: DocumentedCommand) -> str | None:
    """Return the reason why a command is not run here."""
    if command.is_for_another_machine:
        return "for another machine"
    return next((why for start, why in NOT_RUN.items() if re.match(start, str(command))), None)


def fault(command: DocumentedCommand) -> str | None:
    """Return what is wrong with a command; the files that it reads need not exist."""
    if command.is_for_another_machine and not command.is_marked:
        return "neither the text before it nor its first line says on which machine it runs"
    match [command.program, *command.words[1:]]:
        case ["resdeploy", name, *arguments] if name in main.commands:
            try:
                main.commands[name].make_context(name, arguments, click.Context(main))
            except click.ClickException as error:
                return error.format_message()
            return None
        case ["resdeploy", *words]:
            return None if set(words) <= {"--help", "--version"} else "there is no such command"
        case ["make", *words]:
            wrong = {word for word in words if "=" not in word} - TARGETS
            return f"the Makefile has no such target: {wrong}" if wrong else None
        case ["python" | "python3", "-m", module, *_]:
            return None if _is_module(module) else f"there is no module {module}"
        case ["pip", *words]:
            named = {e for w in words if "[" in w for e in re.findall(r"[\w-]+", w.split("[")[1])}
            wrong = named - set(PROJECT["optional-dependencies"])
            return f"there are no such extras: {wrong}" if wrong else None
        case ["curl", *_]:
            examples = {str(c) for c in COMMANDS if c.place.startswith("serving.md:")}
            return None if str(command) in examples else "only docs/serving.md's examples are run"
        case [program, *_] if program.startswith("deploy/"):
            return None if os.access(ROOT / program, os.X_OK) else "there is no such program"
    return None


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    own = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    return own or ("." not in name and importlib.util.find_spec(name) is not None)


def test_commands_are_accepted_as_they_stand() -> None:
    assert len(COMMANDS) > 50
    assert {c.place: found for c in COMMANDS if (found := fault(c))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "resdeploy exprot x", "resdeploy export x --int9", "resdeploy compare a", "make nothing",
        "python -m benchmarks.none", "pip install '.[none]'", "curl localhost:8000/v3",
        "deploy/none", "docker run image", "~/r34/bin/resdeploy serve x",
        "resdeploy verify x --max-drop many",
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Text.\n\n    A=1 {text} > x  # comment\n")
    monkeypatch.setattr("tests.docs.pages.PAGES", [page])
    (command,) = commands()
    assert fault(command)


def test_no_reason_is_out_of_date() -> None:
    texts = [str(command) for command in COMMANDS]
    assert [start for start in NOT_RUN if not any(re.match(start, text) for text in texts)] == []


@pytest.fixture
def _files(tiny_checkpoint: Path, tiny_bundle: Bundle) -> None:
    """Write the files that the documentation names into the current folder."""
    for name in ("r34.bundle", "main.bundle", "candidate.bundle"):
        shutil.copytree(tiny_bundle.path, name)
    for name in ("weights.pth", "last.ckpt", "your-resnet34.pth"):
        shutil.copy(tiny_checkpoint, name)
    for name, per_class in (("train", 20), ("val", 8)):
        write_images(Path("photos", name), per_class, seed=per_class)
    settings = '{"pretrained_cfg": {"input_size": [3, 32, 32]}}'
    for name in ("preprocessing.json", "config.json"):
        Path(name).write_text(settings)
    for name in ("benchmark.json", "old-benchmark.json", "new-benchmark.json"):
        Path(name).write_text(to_text(jsonable(benchmark())))


@pytest.mark.usefixtures("_files")
def test_the_other_commands_run() -> None:
    """Run each command without a reason against it, in the order of the pages."""
    run = set[str]()
    for command in COMMANDS:
        if reason(command) or str(command) in run:
            continue
        run.add(str(command))
        if command.words[1] == "export":  # several examples write the same bundle
            named = re.search(r" -o (\S+)", str(command))
            target = named[1] if named else f"{Path(command.words[2]).stem}.bundle"
            if target != command.words[2]:
                shutil.rmtree(target, ignore_errors=True)
        if command.program == "resdeploy":
            result = CliRunner().invoke(main, command.words[1:], prog_name="resdeploy")
            # The network is random and the pictures are few, so accuracy may be undecided.
            allowed = (0, 3) if command.words[1] in ("verify", "compare") else (0,)
            assert result.exit_code in allowed, f"{command.place}\n{result.output}"
            output = result.stdout
        else:
            done = subprocess.run(command.words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command.place}\n{done.stderr}"
            output = done.stdout
        if command.output:
            Path(command.output).write_text(output)
    assert len(run) > 12


def test_the_examples_of_an_onnx_file_state_the_whole_pre_processing() -> None:
    """Without it, a warning about assumptions stays in the bundle."""
    exports = [command for command in COMMANDS if command.words[1:3] == ("export", "net.onnx")]
    examples = [command for command in exports if "--mean" in command.words]
    assert {command.place.partition(":")[0] for command in examples} == {
        "README.md", "own-classifier.md",
    }  # fmt: skip
    for command in examples:
        assert {"--labels", *map(option_for, REPORTED)} <= {*command.words}, command.place
