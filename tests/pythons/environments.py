"""Virtual environments of other Pythons with the runtime's oldest and newest dependencies.

`python -m tests.pythons.environments` creates them once in the user's cache; tests only use them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cache import CACHE, prune

ROOT = Path(__file__).resolve().parents[2]
TESTERS = ("pytest", "hypothesis")
# JetPack 6 has Python 3.10, JetPack 7 has 3.12.
ENVIRONMENTS = (
    ("3.10", "oldest"), ("3.12", "newest"), ("3.10", "newest"), ("3.12", "oldest"),
    ("3.11", "newest"), ("3.13", "newest"),
)  # fmt: skip
# The oldest are the lower bounds of pyproject.toml; a test compares them.
DEPENDENCIES: Mapping[str, Sequence[str]] = {
    "oldest": ("click==8.1", "msgspec==0.22", "numpy==2.2", "pillow==11", "onnxruntime==1.23.2"),
    "newest": ("click", "msgspec", "numpy", "pillow", "onnxruntime"),
}


def interpreter(version: str) -> Path | None:
    """Find a Python of this version on the PATH or in pyenv; return None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    found = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for candidate in [*([Path(on_path)] if on_path else []), *found]:
        try:
            done = subprocess.run(
                [candidate, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError:
            continue
        if done.stdout.strip() == version:  # pyenv has shims also for versions that are missing
            return candidate
    return None


def folder(version: str, dependencies: str) -> Path:
    """Return the folder of an environment; its name has a hash of the recipe."""
    recipe = json.dumps([DEPENDENCIES[dependencies], TESTERS, constraints()])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return CACHE / f"python{version}-{dependencies}-{digest}"


def constraints() -> str:
    """Return the repository's pins of the runtime's dependencies; others need newer Pythons."""
    newest = DEPENDENCIES["newest"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.split("==")[0] in newest)


def skip_reason(version: str, dependencies: str) -> str | None:
    """Return the reason why an environment cannot be used here; None if it can."""
    if folder(version, dependencies).is_dir():
        return None
    if interpreter(version) is None:
        return f"there is no Python {version} here"
    return "its environment is missing: make environments"


def build(version: str, dependencies: str) -> str:
    """Create an environment if it is missing, and remove old ones; return a message."""
    target, python = folder(version, dependencies), interpreter(version)
    if target.is_dir():
        target.touch()
        return str(target)
    if python is None:
        return f"no Python {version} here: its tests will be skipped"
    CACHE.mkdir(parents=True, exist_ok=True)
    prune(f"python{version}-{dependencies}-*")
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        limits = Path(temporary) / "constraints.txt"
        limits.write_text(constraints() if dependencies == "newest" else "")
        try:
            subprocess.run([python, "-m", "venv", target], check=True)
            subprocess.run(
                [
                    target / "bin/python", "-m", "pip", "install", "--quiet",
                    "--disable-pip-version-check", "-c", limits, *DEPENDENCIES[dependencies],
                    *TESTERS,
                ],
                check=True,
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return str(target)


if __name__ == "__main__":
    for version, dependencies in ENVIRONMENTS:
        print(build(version, dependencies))
