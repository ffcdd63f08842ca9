"""The files of a public project: they parse, and agree with the package and with each other."""

from __future__ import annotations

import configparser
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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = ROOT / ".github/workflows/ci.yml"
SCRIPT = ROOT / ".ci/run"
ENVIRONMENT = {"python_version": "3.12", "platform_machine": "x86_64"}


def parse_yaml(path: Path) -> list[Any]:
    yaml: Any = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text()))


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]


def test_every_yaml_file_parses() -> None:
    files = [
        path
        for path in tracked_files()
        if path.suffix in {".yml", ".yaml", ".cff"} and path.name != "mkdocs.yml"  # has own tags
    ]
    assert {"ci.yml", "bug.yml", "CITATION.cff", ".pre-commit-config.yaml"} <= {
        path.name for path in files
    }
    for path in files:
        assert all(isinstance(document, dict) for document in parse_yaml(path)), path


def test_ci_makes_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (workflow,) = parse_yaml(CI)
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[1]["with"]["cache"] == "pip"
    made = [step["run"] for step in steps if step.get("run", "").startswith("make ")]
    assert [line for line in SCRIPT.read_text().splitlines() if line.startswith("make ")] == made
    (hooks,) = parse_yaml(ROOT / ".pre-commit-config.yaml")
    made += [h["entry"] for h in hooks["repos"][0]["hooks"] if h["entry"].startswith("make ")]
    assert {"check", "test"} <= {line.split()[1] for line in made} <= targets


def test_citation_is_that_of_the_package() -> None:
    (citation,) = parse_yaml(ROOT / "CITATION.cff")
    project = PROJECT["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert citation["title"] == project["name"]


def test_text_follows_the_editor_settings() -> None:
    settings = configparser.ConfigParser()
    settings.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    assert settings["*"]["end_of_line"] == "lf"
    assert settings["*"]["trim_trailing_whitespace"] == "true"
    kinds = {".py", ".toml", ".yml", ".yaml", ".md", ".cff", ".lock"}
    for path in [path for path in tracked_files() if path.suffix in kinds]:
        data = path.read_bytes()
        assert not re.search(rb"[ \t\r]$", data, re.MULTILINE), path
        assert not data or data.endswith(b"\n"), path


def pins(name: str) -> dict[str, list[Requirement]]:
    """Return the pins in a file of requirements by the name of the package."""
    found = dict[str, list[Requirement]]()
    for line in (ROOT / name).read_text().splitlines():
        if re.match("[A-Za-z]", line):
            pin = Requirement(line.removesuffix("\\"))
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(ENVIRONMENT)


def test_the_lock_has_the_versions_of_the_constraints_with_hashes() -> None:
    text, constraints, locked = (
        (ROOT / "requirements.lock").read_text(),
        *map(pins, ("constraints.txt", "requirements.lock")),
    )
    assert "://" not in text
    extras = re.search(r"the extras ([a-z, ]+)\)", text)
    assert extras is not None
    names = extras[1].split(", ")
    assert f"LOCKED = {' '.join(names)}\n" in (ROOT / "Makefile").read_text()
    optional = PROJECT["project"]["optional-dependencies"]
    needed = [*PROJECT["project"]["dependencies"], *(r for name in names for r in optional[name])]
    for requirement in map(Requirement, needed):
        (pin,) = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("=="))
    for name, (pin,) in locked.items():
        assert [str(p.specifier) for p in constraints[name] if applies(p)] == [str(pin.specifier)]
    blocks = re.split(r"^(?=[a-z])", text.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked) > 50
    for block in blocks:
        assert re.fullmatch(r"\S.* \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+", block), block


def test_all_development_tools_have_a_pin() -> None:
    constraints, groups = pins("constraints.txt"), PROJECT["dependency-groups"]
    names = {canonicalize_name(Requirement(r).name) for group in groups.values() for r in group}
    assert names - set(constraints) == set()


# A package of this name in an index would be another one.
CLAIM = re.compile(r"""pip3? install(?= )[^\n;&|#]*?['" ]resdeploy(\[[^\]\n]*\])?(?=['"\s`])(?! @)""")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install resdeploy\n", True),
        ("bin/pip install -q 'resdeploy[cpu]'", True),
        ("`pip install resdeploy`", True),
        ("pip install '.[cpu]' && resdeploy doctor", False),
        ("pip install './resdeploy[cpu]'", False),
        ("pip install 'resdeploy-0.1.0-py3-none-any.whl[cpu]'", False),
        ('pip install "resdeploy[cpu] @ $URL"', False),
    ],
)
def test_claims_of_an_index_are_found(text: str, found: bool) -> None:
    assert (CLAIM.search(text) is not None) == found


def test_no_file_claims_that_an_index_has_the_package() -> None:
    for path in tracked_files():
        if path != Path(__file__).resolve() and path.suffix not in {".json", ".png", ".onnx"}:
            for match in CLAIM.finditer(path.read_bytes().decode(errors="replace")):
                assert "--no-index" in match[0], (path, match[0])
