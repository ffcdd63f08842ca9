"""The sdist and the wheel of the package, as users install them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_sdist(folder: Path) -> Path:
    """Build the sdist of this checkout without network, and return its path."""
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
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, folder], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def build_wheel(folder: Path) -> Path:
    """Build the wheel from the sdist, as `make dist` does, and return its path."""
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder),
            str(build_sdist(folder)),
        ],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into `folder`, which is all that installing pure Python does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
