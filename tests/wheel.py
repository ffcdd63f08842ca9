"""The package as users install it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout, without a download."""
    source = folder / "source"
    # The build leaves folders beside its source; the checkout stays as it is.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    subprocess.run(
        ["tar", "--create", "--null", "--files-from=-", f"--file={folder / 'source.tar'}"],
        cwd=ROOT, input=listed, check=True,
    )  # fmt: skip
    source.mkdir()
    subprocess.run(
        ["tar", "--extract", f"--file={folder / 'source.tar'}", f"--directory={source}"], check=True
    )
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder),
            str(source),
        ],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """What installing does for a package of Python alone."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
