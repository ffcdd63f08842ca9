"""Each command of the documentation exists, with its options and files, and runs where it can."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
import tomllib
from click.testing import CliRunner

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.main import main
from resdeploy.json_documents import jsonable, to_text
from tests.docs.pages import DOCS, ROOT, DocumentedCommand, commands
from tests.results import benchmark
from tests.samples import write_images

COMMANDS = commands()
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Patterns of the commands that are not run here, with the reason. All others run.
NOT_RUN: Mapping[str, str] = {
    "make ": "the targets are run by developers and in CI",
    "pip install|python3 -m venv": "downloads packages; tests/pythons and others install the wheel",
    "python -m pytest": "a part of `make test`",
    "curl ": "fault() requires an example that tests/runtime/serving/test_examples.py runs",
    "deploy/jetson/": "downloads packages; tests/deploy/test_jetson.py has its tests",
    r"cp -r '~/.cache/resdeploy/digits'": "the digits are there after `make demo`",
    "resdeploy bench": "measures for a minute; tests/journeys runs it",
    "resdeploy build": "needs TensorRT; tests/runtime/backends/tensorrt builds engines",
    r"resdeploy demo|resdeploy \w+ (runs/)?demo\b": "takes minutes; tests/resdeploy/cli has tests",
    r"resdeploy \w+ (runs/)?photos\b(\.bundle)?": "python -m benchmarks.tutorial runs the tutorial",
    "resdeploy doctor": "depends on the machine; tests/runtime/diagnosis has its tests",
    "resdeploy explain --slow": "measures for 4 s at least; tests/runtime/diagnosis has its tests",
    "resdeploy preprocess": "takes long; tests/export/preprocessing_search has its tests",
    "resdeploy serve": "runs until it is stopped; tests/runtime/serving starts it",
    "resdeploy train": "takes minutes; tests/journeys trains",
    "resdeploy export cifar10": "its network is not in the repository; tests/export has its tests",
    "resdeploy export (--int8|run )": "needs a run; tests/journeys exports one",
    "resdeploy export weights.pth .*--mean": "has 224 pixels; tests/export has its tests",
    "resdeploy export .*--int8 .*-o": "the same as README's without -o",
}


def reason(command: DocumentedCommand) -> str | None:
    """Return the reason why a command is not run here."""
    if command.is_for_another_machine:
        return "for another machine"
    return next((why for start, why in NOT_RUN.items() if re.match(start, str(command))), None)


def fault(command: DocumentedCommand) -> str | None:
    """Return what is wrong with a command; its files need not exist."""
    program, arguments = command.program, list(command.words[1:])
    if command.is_for_another_machine and not command.is_marked:
        return "neither the text before it nor its first line says on which machine it runs"
    if program == "resdeploy":
        return _usage_fault(arguments)
    if program == "make":
        words = [word for word in arguments if "=" not in word]
        return None if set(words) <= TARGETS else f"the Makefile has no such target: {words}"
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        return None if _is_module(arguments[1]) else f"there is no module {arguments[1]}"
    if program == "pip":
        extras = {
            e for word in arguments for e in re.findall(r"[\w-]+", "".join(word.split("[")[1:]))
        }
        missing = extras - set(EXTRAS)
        return f"there are no extras {missing}" if missing else None
    if program == "curl" and not _is_example(command):
        return "take an example of docs/serving.md, because a test runs these"
    if command.words[0].startswith("deploy/"):
        executable = os.access(ROOT / command.words[0], os.X_OK)
        return None if executable else "there is no such program"
    return None


def _usage_fault(arguments: list[str]) -> str | None:
    if not arguments or arguments[0].startswith("-"):
        return None if set(arguments) <= {"--help", "--version"} else "no such option"
    if arguments[0] not in main.commands:
        return f"there is no command {arguments[0]}"
    try:
        main.commands[arguments[0]].make_context(arguments[0], arguments[1:], click.Context(main))
    except click.ClickException as error:
        return error.format_message()
    except click.exceptions.Exit:  # --help
        return None
    return None


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    own = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    return own or (not path.exists() and importlib.util.find_spec(name) is not None)


def _is_example(command: DocumentedCommand) -> bool:
    return any(
        other.page == DOCS / "serving.md" and str(other) == str(command) for other in COMMANDS
    )


@pytest.mark.parametrize(
    "page", sorted({command.page for command in COMMANDS}), ids=lambda p: p.name
)
def test_commands_are_accepted_as_they_stand(page: Path) -> None:
    faults = {c.place: fault(c) for c in COMMANDS if c.page == page}
    assert {place: found for place, found in faults.items() if found} == {}


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
    page.write_text(f"Text.\n\n    {text}   # comment\n")
    monkeypatch.setattr("tests.docs.pages.PAGES", [page])
    (command,) = commands()
    assert fault(command)


def test_no_reason_is_out_of_date() -> None:
    texts = [str(command) for command in COMMANDS]
    assert [start for start in NOT_RUN if not any(re.match(start, text) for text in texts)] == []


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_bundle: Bundle
) -> Path:
    """Return a folder with the files that the documentation names."""
    folder = tmp_path_factory.mktemp("documented")
    for name in ("r34.bundle", "main.bundle", "candidate.bundle"):
        shutil.copytree(tiny_bundle.path, folder / name)
    for name in ("weights.pth", "last.ckpt", "your-resnet34.pth"):
        shutil.copy(tiny_checkpoint, folder / name)
    for name, per_class in (("train", 20), ("val", 8)):
        write_images(folder / "photos" / name, per_class, seed=per_class)
    settings = '{"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    (folder / "preprocessing.json").write_text(settings)
    (folder / "config.json").write_text('{"pretrained_cfg": {"input_size": [3, 32, 32]}}')
    for name in ("benchmark.json", "old-benchmark.json", "new-benchmark.json"):
        (folder / name).write_text(to_text(jsonable(benchmark())))
    return folder


def test_the_other_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each command of the documentation without a reason against it, in their order."""
    monkeypatch.chdir(folder)
    run = set[str]()
    for command in COMMANDS:
        if reason(command) or (text := str(command)) in run:
            continue
        run.add(text)
        shutil.rmtree("weights.bundle", ignore_errors=True)  # alternatives have the same output
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
