"""The folder that deploy/jetson/pack makes, with stand-ins for the wheels that it downloads."""

from __future__ import annotations

import re
import shutil
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/jetson/pack"


def load_script() -> Any:
    """Return deploy/jetson/pack as a module."""
    spec = spec_from_loader("pack", SourceFileLoader("pack", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheels(folder: Path, wheel: Path, packages: Path) -> None:
    """Write the wheels of resdeploy and pip, and one that makes a folder of packages importable."""
    folder.mkdir(parents=True)
    shutil.copy(wheel, folder)
    pip = distribution("pip")
    with zipfile.ZipFile(folder / f"pip-{pip.version}-py3-none-any.whl", "w") as archive:
        for file in pip.files or ():
            if ".." not in file.parts:
                # Beside its source, a compiled module saves an emulated CPU from compiling it.
                name = re.sub(r"__pycache__/(\w+)\.[\w-]+\.pyc$", r"\1.pyc", str(file))
                archive.write(str(file.locate()), name)
    with zipfile.ZipFile(folder / "packages-1-py3-none-any.whl", "w") as archive:
        archive.writestr("packages.pth", f"{packages}\n")
        about = "packages-1.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: packages\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{about}/RECORD", "")
