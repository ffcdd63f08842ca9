"""What every backend must be able to do, whatever engine is behind it.

A new engine joins by its entry in `runtime/backends/registry.py`; one that cannot run here is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.errors import BackendError, BundleError
from resdeploy.runtime.backends import openvino as openvino_cpu
from resdeploy.runtime.backends.base import Backend, OpenOptions
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.registry import ENGINES, Engine
from resdeploy.runtime.verification.golden_check import check_golden
from tests.alone import SHARED

NAMES = ("fp32", "fp16", "int8", "int8-cpu")  # what the tests' bundle holds
PAIRS = [
    (engine, name)
    for engine in ENGINES
    if engine.check_availability() is None and not (engine.name == openvino_cpu.NAME and SHARED)
    for name in engine.artifacts(engine.version() or "")
    if name in NAMES
]
# Batches are summed in another order: float32 differs in its last digits, float16 and the steps
# of INT8 by what one rounding more or less is worth. In parts of the largest logit.
BATCH_TOLERANCE = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.INT8: 5e-2}
# A GPU's convolutions round float32 to TF32, whose 10 bits are float16's, and the kernels for one
# image and for many need not be the same: 6e-4 was seen on an H100.
TF32_TOLERANCE = BATCH_TOLERANCE[Precision.FP16]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0].name}/{pair[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    engine, name = request.param
    return engine, name


@pytest.fixture
def backend(pair: tuple[Engine, str], tiny_bundle: Bundle) -> Iterator[Backend]:
    engine, name = pair
    opened = engine.open(tiny_bundle, tiny_bundle.artifact(name), OpenOptions(threads=1))
    yield opened
    opened.close()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_it_runs_here_or_says_why_not(engine: Engine) -> None:
    if obstacle := engine.check_availability():
        assert obstacle.hint
        pytest.skip(f"{engine.name} is not tested: {obstacle.reason}")
    assert engine.version()


def test_it_has_the_name_of_its_engine(backend: Backend, pair: tuple[Engine, str]) -> None:
    assert backend.name == pair[0].name


@pytest.mark.parametrize("batch", [1, 2, 7, 24])
def test_logits_are_float32_a_row_per_image(
    backend: Backend, tiny_bundle: Bundle, batch: int
) -> None:
    logits = backend.run(tiny_bundle.golden().images[:batch])
    assert logits.dtype == np.float32
    assert logits.shape == (batch, 3)
    assert np.isfinite(logits).all()


def test_it_gives_pytorchs_answers(
    backend: Backend, pair: tuple[Engine, str], tiny_bundle: Bundle
) -> None:
    check = check_golden(backend, tiny_bundle.artifact(pair[1]), tiny_bundle.golden())
    assert check.passed, check
    assert check.images == 24


def test_identical_rows_give_identical_logits(backend: Backend, tiny_bundle: Bundle) -> None:
    logits = backend.run(np.repeat(tiny_bundle.golden().images[:1], 7, axis=0))
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], 7, axis=0))


def test_the_batch_does_not_matter(
    backend: Backend, pair: tuple[Engine, str], tiny_bundle: Bundle
) -> None:
    images = tiny_bundle.golden().images
    together = backend.run(images)
    apart = np.concatenate([backend.run(images[i : i + 1]) for i in range(len(images))])
    tolerance = BATCH_TOLERANCE[tiny_bundle.artifact(pair[1]).precision]
    if pair[0].name != onnxruntime_cpu.NAME:
        tolerance = max(tolerance, TF32_TOLERANCE)
    np.testing.assert_allclose(together, apart, rtol=0, atol=tolerance * np.abs(apart).max())


def test_running_twice_gives_the_same(backend: Backend, tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images
    before = images.copy()
    np.testing.assert_array_equal(backend.run(images), backend.run(images))
    np.testing.assert_array_equal(images, before)


def test_a_wrong_shape_is_a_backend_error(backend: Backend) -> None:
    with pytest.raises(BackendError) as caught:
        backend.run(np.zeros((1, 3, 32, 32), np.uint8))
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_not_loaded(
    pair: tuple[Engine, str], tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine, name = pair
    folder = tmp_path_factory.mktemp("damaged")
    artifact = tiny_bundle.artifact(name)
    data = bytearray((tiny_bundle.path / artifact.file).read_bytes())
    data[-1] ^= 1
    (folder / artifact.file).write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        engine.open(Bundle(folder, tiny_bundle.manifest), artifact, OpenOptions(threads=1))
