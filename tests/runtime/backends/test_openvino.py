"""Tests of OpenVINO that go beyond those of every backend in tests/contract."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, install_hint
from resdeploy.progress import silent
from resdeploy.result_files.verification import Rule
from resdeploy.runtime.backends import engine_speeds, openvino, registry
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.engine_speeds import measure_speeds, speed_key
from resdeploy.runtime.backends.onnxruntime.cpu import NAME as FIRST
from resdeploy.runtime.backends.openvino import OpenVinoCpu, open_artifact
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.bench.contenders import backend_contenders
from resdeploy.runtime.verification.golden_check import check_golden
from resdeploy.statistics import sqnr_db
from tests.alone import SHARED

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(SHARED, reason="runs in a process of its own, see tests/alone.py")


ENGINES = registry.ENGINES
"""All engines; in tests, `auto` skips OpenVINO (tests/conftest.py)."""


def test_auto_compares_openvino_with_onnxruntime(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", ENGINES)
    pairs = [(c.engine.name, c.artifact.name) for c in candidates(tiny_bundle)]
    assert pairs[:4] == [(e, a) for a in ("int8-cpu", "fp32") for e in (FIRST, openvino.NAME)]
    workload = Workload(bundle=tiny_bundle.path, batch=1, threads=1)
    assert openvino.NAME not in {spec.name for spec in backend_contenders(tiny_bundle, workload)}
    for name, value in {"ROUNDS": 1, "MIN_ROUNDS": 1, "TURN_SECONDS": 0.001}.items():
        monkeypatch.setattr(engine_speeds, name, value)
    key = speed_key(candidates(tiny_bundle), 1)
    assert key is not None
    assert list(key.engines.items()) == [
        (FIRST, onnxruntime.__version__), (openvino.NAME, openvino.installed_version())
    ]  # fmt: skip
    speeds = measure_speeds(tiny_bundle, key, silent)
    assert speeds is not None
    assert speeds.fastest == FIRST  # one round decides nothing


def test_float32_stays_float32(tiny_bundle: Bundle) -> None:
    """bfloat16, with its 8 bits of mantissa, would give about 45 dB."""
    golden = tiny_bundle.golden()
    backend = open_artifact(tiny_bundle, tiny_bundle.artifact("fp32"), OpenOptions())
    assert np.median(sqnr_db(golden.logits, backend.run(golden.images))) > 100


def test_int8_is_checked_by_sqnr(tiny_bundle: Bundle) -> None:
    artifact = tiny_bundle.artifact("int8-cpu")
    golden = tiny_bundle.golden()
    assert artifact.name in golden.bit_exact
    check = check_golden(open_artifact(tiny_bundle, artifact, OpenOptions()), artifact, golden)
    assert (check.passed, check.rule) == (True, Rule.SQNR)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_streams_divide_a_batch_and_give_the_same_logits(tiny_bundle: Bundle, count: int) -> None:
    artifact, images = tiny_bundle.artifact("int8-cpu"), tiny_bundle.golden().images[:count]
    options = OpenOptions(threads=2, streams=2)
    one, streams = (open_artifact(tiny_bundle, artifact, o) for o in (OpenOptions(), options))
    # The last layer is a float sum, whose order may depend on the batch: half of 24 bits agree.
    np.testing.assert_allclose(streams.run(images), one.run(images), rtol=1e-4, atol=1e-4)
    assert check_golden(streams, artifact, tiny_bundle.golden()).passed


def test_rejects_bytes_that_are_no_graph() -> None:
    with pytest.raises(BackendError, match="rejects the graph: Unable to read the") as caught:
        OpenVinoCpu(b"not a graph")
    assert "\n" not in str(caught.value)


def test_a_closed_backend_raises(tiny_bundle: Bundle) -> None:
    backend = open_artifact(tiny_bundle, tiny_bundle.artifact("fp32"), OpenOptions(threads=1))
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.run(tiny_bundle.golden().images)


def test_without_openvino_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "installed_version", lambda: None)
    found = openvino.check_availability()
    assert found is not None
    assert found.hint == install_hint("openvino")
