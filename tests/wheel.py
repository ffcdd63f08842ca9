"""The wheel of the package, as users install it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout without network, and return its path."""
    source = folder / "source"
    # A copy, because the build writes folders beside its source.
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
    """Unpack a wheel into `folder`, which is all that installing pure Python does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
