"""The files of a public project: they parse, and agree with the package and with each other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resdeploy import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMAND = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
# A package of this name in an index would be another one.
CLAIM = re.compile(
    r"""pip3? install(?= )[^\n;&|#]*?['" ]resdeploy(\[[^\]\n]*\])?(?=['"\s`])(?! @)"""
)


def parse_yaml(path: Path) -> list[Any]:
    yaml: Any = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def files() -> list[Path]:
    listed = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]


def test_every_yaml_file_parses(files: list[Path]) -> None:
    found = {path for path in files if path.suffix in {".yml", ".yaml", ".cff"}}
    found.discard(ROOT / "mkdocs.yml")  # `make docs` reads it; it has tags of its own
    assert {"ci.yml", "bug.yml", ".pre-commit-config.yaml"} <= {path.name for path in found}
    for path in found:
        assert all(isinstance(document, dict) for document in parse_yaml(path)), path


def test_ci_makes_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (workflow,) = parse_yaml(ROOT / ".github/workflows/ci.yml")
    steps = workflow["jobs"]["test"]["steps"]
    made = [step["run"] for step in steps if step.get("run", "").startswith("make ")]
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert made == [line for line in lines if line.startswith("make ")]
    assert {"check", "test"} <= {line.split()[1] for line in made} <= targets
    assert steps[1]["with"]["cache"] == "pip"


def test_citation_is_that_of_the_package() -> None:
    (citation,) = parse_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    for ours, theirs in (("title", "name"), ("license", "license"), ("authors", "authors")):
        assert citation[ours] == PROJECT[theirs]


def pins(name: str) -> dict[str, str]:
    """Return the versions in a file of requirements that apply to Python 3.12."""
    lines = re.findall(r"^[A-Za-z][^\\\n]*", (ROOT / name).read_text(), re.MULTILINE)
    environment = {"python_version": "3.12", "python_full_version": "3.12.0"}
    return {
        canonicalize_name(pin.name): str(pin.specifier)
        for pin in map(Requirement, lines)
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def test_the_lock_has_the_versions_of_the_constraints_with_hashes() -> None:
    text, makefile = (ROOT / "requirements.lock").read_text(), (ROOT / "Makefile").read_text()
    constraints, locked = pins("constraints.txt"), pins("requirements.lock")
    assert "://" not in text
    assert {name: constraints.get(name) for name in locked} == locked
    (names,) = re.findall(r"^LOCKED = (.*)", makefile, re.MULTILINE)
    assert f"(the extras {names.replace(' ', ', ')})" in text
    extras = [r for name in names.split() for r in PROJECT["optional-dependencies"][name]]
    for needed in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert needed.specifier.contains(locked[canonicalize_name(needed.name)].strip("="))
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked) > 50
    assert all(re.search(r"( \\\n    --hash=sha256:[0-9a-f]{64})+\n$", b) for b in blocks)


def test_no_file_claims_that_an_index_has_the_package(files: list[Path]) -> None:
    claims = (
        "pip install resdeploy\n",
        "bin/pip install -q 'resdeploy[cpu]'",
        "`pip install resdeploy`",
    )
    assert all(map(CLAIM.search, claims))
    true = "'.[cpu]' && resdeploy doctor", "./resdeploy", "'resdeploy-0.1.0-py3-none-any.whl[cpu]'"
    assert not any(CLAIM.search(f"pip install {text}") for text in true)
    for path in files:
        if path != Path(__file__).resolve() and path.suffix not in {".json", ".png", ".onnx"}:
            for match in CLAIM.finditer(path.read_bytes().decode(errors="replace")):
                assert "--no-index" in match[0], (path, match[0])


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As the clone does, for Python started in the folder that holds it."""
    if not (ROOT / ".venv").is_dir():
        pytest.skip("the environment is not that of the Makefile")
    (tmp_path / "resdeploy").mkdir()
    command = [
        str(ROOT / ".venv/bin/python"),
        "-c",
        "import resdeploy; print(resdeploy.load.__name__)",
    ]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout == "load\n", ran.stderr
