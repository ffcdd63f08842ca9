"""The contract of all backends.

These tests run every engine of `runtime/backends/registry.py` that can run here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.errors import BackendError, BundleError
from resdeploy.runtime.backends import openvino
from resdeploy.runtime.backends.base import Backend, OpenOptions
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.registry import ENGINES, Engine
from resdeploy.runtime.verification.golden_check import check_golden
from tests.alone import SHARED

NAMES = ("fp32", "fp16", "int8", "int8-cpu")  # the artifacts of the tests' bundle
PAIRS = [
    (engine, name)
    for engine in ENGINES
    if engine.check_availability() is None and not (engine.name == openvino.NAME and SHARED)
    for name in engine.artifacts(engine.version() or "")
    if name in NAMES
]
# Relative to the largest logit. Another batch size can change the order of summation: float32 then
# differs in its last digits, float16 and INT8 by the error of one rounding.
BATCH_TOLERANCE = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.INT8: 5e-2}
# Convolutions on a GPU round float32 to TF32, which has the 10 bits of float16, and the kernels can
# differ with the batch size: 6e-4 was measured on an H100.
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
def test_is_available_or_gives_a_reason(engine: Engine) -> None:
    if unavailability := engine.check_availability():
        assert unavailability.hint
        pytest.skip(f"{engine.name} is not tested: {unavailability.reason}")
    assert engine.version()


def test_backend_has_the_name_of_its_engine(backend: Backend, pair: tuple[Engine, str]) -> None:
    assert backend.name == pair[0].name


@pytest.mark.parametrize("batch", [1, 2, 7, 24])
def test_logits_are_float32_with_one_row_per_image(
    backend: Backend, tiny_bundle: Bundle, batch: int
) -> None:
    logits = backend.run(tiny_bundle.golden().images[:batch])
    assert logits.dtype == np.float32
    assert logits.shape == (batch, 3)
    assert np.isfinite(logits).all()


def test_passes_the_golden_check(
    backend: Backend, pair: tuple[Engine, str], tiny_bundle: Bundle
) -> None:
    check = check_golden(backend, tiny_bundle.artifact(pair[1]), tiny_bundle.golden())
    assert check.passed, check
    assert check.images == 24


def test_identical_images_give_identical_logits(backend: Backend, tiny_bundle: Bundle) -> None:
    logits = backend.run(np.repeat(tiny_bundle.golden().images[:1], 7, axis=0))
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], 7, axis=0))


def test_logits_do_not_depend_on_the_batch_size(
    backend: Backend, pair: tuple[Engine, str], tiny_bundle: Bundle
) -> None:
    images = tiny_bundle.golden().images
    batch = backend.run(images)
    single = np.concatenate([backend.run(images[i : i + 1]) for i in range(len(images))])
    tolerance = BATCH_TOLERANCE[tiny_bundle.artifact(pair[1]).precision]
    if pair[0].name != onnxruntime_cpu.NAME:
        tolerance = max(tolerance, TF32_TOLERANCE)
    np.testing.assert_allclose(batch, single, rtol=0, atol=tolerance * np.abs(single).max())


def test_repeated_runs_give_identical_logits(backend: Backend, tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images
    before = images.copy()
    np.testing.assert_array_equal(backend.run(images), backend.run(images))
    np.testing.assert_array_equal(images, before)


def test_rejects_a_wrong_shape(backend: Backend) -> None:
    with pytest.raises(BackendError) as caught:
        backend.run(np.zeros((1, 3, 32, 32), np.uint8))
    assert "\n" not in str(caught.value)


def test_rejects_a_damaged_graph(
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
