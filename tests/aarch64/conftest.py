"""Fixtures for emulated CPUs: the wheel in a userland, and a ResNet-34 with real images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import write_manifest
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.triton.repository import write_repository
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.model.architecture import Architecture
from tests.aarch64 import userland
from tests.boards import Files, lay_out
from tests.samples import SIZE, make_classifier
from tests.wheel import unpack_wheel

# A program that runs a graph like Triton, without options; its arguments are those of
# `plain_session_files`.
PLAIN_SESSION = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"images": np.load(sys.argv[2])})
np.save(sys.argv[3], logits)
"""


@dataclass(frozen=True, slots=True)
class Emulated:
    """An emulated userland with the wheel."""

    root: Path
    packages: Path
    """The folder that holds only resdeploy."""
    sites: Path
    """The folder that holds the folders of dependencies."""

    def run(
        self, *command: str, sites: Sequence[str] = ("runtime",), **environment: str
    ) -> CompletedProcess[str]:
        """Run Python with arguments; the first of `sites` has precedence."""
        return userland.run(
            command,
            root=self.root,
            sites=[self.packages, *(self.sites / name for name in sites)],
            environment=environment,
        )


@pytest.fixture(scope="session")
def emulated(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The userland; the test is skipped if it is missing."""
    if reason := userland.skip_reason():
        pytest.skip(f"aarch64 is not tested: {reason}")
    packages = tmp_path_factory.mktemp("aarch64") / "packages"
    unpack_wheel(wheel, packages)
    return Emulated(userland.folder() / "root", packages, userland.folder())


@pytest.fixture
def board(emulated: Emulated, tmp_path: Path) -> Callable[[Files], Emulated]:
    """A function that makes a userland whose kernel shows the files of a board."""

    def make(files: Files) -> Emulated:
        root = tmp_path / "root"
        shutil.copytree(emulated.root, root, copy_function=os.link, symlinks=True)
        (root / "proc/cpuinfo").unlink()  # it is a hard link to the file of the userland
        return Emulated(lay_out(root, files), emulated.packages, emulated.sites)

    return make


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a ResNet-34 with only int8-cpu, and 32 handwritten digits as golden images."""
    folder = tmp_path_factory.mktemp("digits")
    architecture = Architecture(classes=10, blocks=(3, 4, 6, 3))
    torch.save(make_classifier(architecture).network.state_dict(), folder / "r34.pth")
    config = ExportConfig(
        source=folder / "r34.pth", output=folder / "r34.bundle", image_size=SIZE, int8=True,
        calibration_data=digits_folder(), calibration_images=64, calibrator="max",
    )  # fmt: skip
    bundle = open_bundle(export(config).bundle)
    assert len(bundle.golden().bit_exact["int8-cpu"]) == 32
    # The other graphs are for other engines; they take minutes on an emulated CPU.
    alone = replace(bundle.manifest, artifacts=(bundle.artifact("int8-cpu"),))
    write_manifest(bundle.path, alone)
    return open_bundle(bundle.path)


def plain_session_files(bundle: Bundle, folder: Path) -> list[str]:
    """Write Triton's graph and eight golden images, and return the arguments of the program."""
    repository = write_repository(bundle, folder / "models")
    (graph,) = (model.graph for model in repository.models if model.artifact == "int8-cpu")
    np.save(folder / "images.npy", bundle.golden().images[:8])
    files = repository.repository / graph, folder / "images.npy", folder / "logits.npy"
    return [str(file) for file in files]
