"""Fixtures that many tests use: images, a checkpoint, and a bundle with every graph."""

from __future__ import annotations

import dataclasses
import errno
import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Each parallel worker gets one core before a library counts the cores: threads of several workers
# on the same core would wait for each other in busy loops.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

from resdeploy import progress
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import ExportWarning, write_manifest
from resdeploy.filesystem import sha256
from resdeploy.images.class_mapping import log_once
from resdeploy.runtime.backends import openvino, registry
from tests.samples import CLASSES, NARROW, SIZE, make_classifier, write_images
from tests.wheel import build_wheel

ROOT = Path(__file__).resolve().parent.parent

# These tests need a package that an environment with only the runtime does not have.
NEEDED_PACKAGES = {
    "resdeploy/test_changed_predictions.py": "scipy",
    "resdeploy/test_label_check.py": "scipy",
    "resdeploy/test_progress.py": "rich",
    "resdeploy/test_statistics.py": "scipy",
    "runtime/serving": "starlette",
    "runtime/backends/tensorrt/test_builder.py": "onnx",
    "runtime/bench/test_benchmark.py": "torch",
}
assert all((ROOT / "tests" / path).exists() for path in NEEDED_PACKAGES), "a test was renamed"
collect_ignore = [path for path, package in NEEDED_PACKAGES.items() if find_spec(package) is None]

# `make test` checks the same examples on every machine. HYPOTHESIS_PROFILE=search looks for new
# counterexamples; each one found is added as an @example. Slow machines are not an error.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile("search", max_examples=2000, deadline=None, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not UTF-8 in captured output, because it would stop a parallel worker."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that all workers finish at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _private_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Give every test its own working folder, and all tests a cache apart from the user's."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    # OpenVINO crashes workers that import PyTorch, too (tests/alone.py), and which engine is faster
    # depends on the machine, so `auto` skips it in tests.
    engines = [
        dataclasses.replace(e, automatic=False) if e.name == openvino.NAME else e
        for e in registry.ENGINES
    ]
    monkeypatch.setattr(registry, "ENGINES", tuple(engines))
    # What a command writes to stderr must not depend on how long it takes.
    monkeypatch.setattr(progress, "LINE_SECONDS", math.inf)
    log_once.cache_clear()
    torch = sys.modules.get("torch")  # missing in an environment with only the runtime
    threads = torch.get_num_threads() if torch else None
    yield
    if torch:
        torch.set_num_threads(threads)


@pytest.fixture
def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that makes `open` fail for a file; root may open files of any mode."""

    def refuse(path: Path, code: int = errno.EACCES) -> None:
        def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
            def opens(file: Any, *arguments: Any, **options: Any) -> Any:
                if file == path or file == str(path):
                    raise OSError(code, os.strerror(code), str(path))
                return real(file, *arguments, **options)

            return opens

        for name, real in (("io.open", io.open), ("builtins.open", io.open), ("os.open", os.open)):
            monkeypatch.setattr(name, refusing(real))

    return refuse


@pytest.fixture(scope="session")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `train/` (20 images per class) and `val/` (8); do not change it."""
    folder = tmp_path_factory.mktemp("images") / "data"
    write_images(folder / "train", 20, seed=0)
    write_images(folder / "val", 8, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a torchvision-style .pth file of a small network with three classes."""
    torch = pytest.importorskip("torch")
    _shorten_exports()
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(make_classifier().network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def narrow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file like `tiny_checkpoint`, of a network that is quick to train and to store."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("checkpoint") / "narrow.pth"
    torch.save(make_classifier(NARROW).network.state_dict(), path)
    return path


def _shorten_exports() -> None:
    """Convert each network and round each weight once in this process; time graphs for less long.

    These are half of an export; `tests/export/graph` and `tests/calibration` test them. All exports
    list the packages of this environment, which `tests/export/test_sbom.py` reads again. No test
    reads the times.
    """
    from resdeploy.calibration.weight_rounding import clip_pairs
    from resdeploy.export import bundle_files
    from resdeploy.export.graph import qdq
    from resdeploy.export.graph.to_onnx import to_onnx
    from resdeploy.export.mixed_precision import tradeoff
    from resdeploy.export.sbom import environment_sbom
    from resdeploy.export.source import network

    graphs = dict[tuple[object, ...], Any]()
    integers = dict[tuple[object, ...], Any]()

    def convert_once(classifier: Any, *arguments: Any) -> Any:
        tensors = [t.cpu().numpy().tobytes() for t in classifier.state_dict().values()]
        key = classifier.network.architecture, sha256(b"".join(tensors)), *arguments
        if key not in graphs:
            graphs[key] = to_onnx(classifier, *arguments)
        return graphs[key].clone()

    def clip_once(weight: Any, pairs: Any) -> Any:
        key = weight.shape, sha256(weight.tobytes()), sha256(pairs.tobytes())
        if key not in integers:
            integers[key] = clip_pairs(weight, pairs)
        return tuple(part.copy() for part in integers[key])

    patch = pytest.MonkeyPatch()
    patch.setattr(network, "to_onnx", convert_once)
    patch.setattr(qdq, "clip_pairs", clip_once)
    patch.setattr(bundle_files, "environment_sbom", cache(environment_sbom))
    patch.setattr(tradeoff, "TIMING_SECONDS", 0.02)


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle with all four graphs of the small network; do not change it.

    Without PyTorch, `RESDEPLOY_TINY_BUNDLE` names a bundle that was exported elsewhere.
    """
    if made := os.environ.get("RESDEPLOY_TINY_BUNDLE"):
        return open_bundle(Path(made))
    pytest.importorskip("torch")
    from resdeploy.export.pipeline import ExportConfig, export

    tiny_checkpoint: Path = request.getfixturevalue("tiny_checkpoint")
    image_data: Path = request.getfixturevalue("image_data")
    folder = tmp_path_factory.mktemp("bundle")
    labels = folder / "labels.txt"
    labels.write_text("\n".join(CLASSES))
    config = ExportConfig(
        source=tiny_checkpoint,
        output=folder / "tiny.bundle",
        image_size=SIZE,
        labels=labels,
        fp16=True,
        int8=True,
        calibration_data=image_data,
        calibration_images=32,
    )
    bundle = open_bundle(export(config).bundle)
    # The statistics of its batch norms are random, of which the export warns.
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, warnings=()))
    return open_bundle(bundle.path)


@pytest.fixture(scope="session")
def doubtful_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a copy of the bundle with a warning about its INT8 graphs; do not change it."""
    doubt = ExportWarning(
        message="int8 deviates from FP32: agreement 90.6 %, limit 98 %",
        hint="calibrate on more images",
        artifacts=("int8", "int8-cpu"),
    )
    folder = tmp_path_factory.mktemp("doubtful") / "doubtful.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    write_manifest(folder, dataclasses.replace(tiny_bundle.manifest, warnings=(doubt,)))
    return open_bundle(folder)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package's wheel from this checkout, and return its path."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of large files that are not in the repository, or skip the test."""
    folder = Path(os.environ.get("RESDEPLOY_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10-resnet34.safetensors").is_file():
        pytest.skip("no development data: set RESDEPLOY_DATA to its folder")
    return folder
