"""The golden check, above all its rule that int8-cpu is bit-exact on every CPU."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.cli.verify import verification_text
from resdeploy.errors import BundleError
from resdeploy.filesystem import sha256
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.result_files.verification import Rule
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.base import DEFAULT_OPTIONS
from resdeploy.runtime.backends.onnxruntime.cpu import NAME, OnnxRuntimeCpu, open_artifact
from resdeploy.runtime.backends.registry import Engine
from resdeploy.runtime.model import load
from resdeploy.runtime.verification.golden_check import check_golden, different_rows
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.fakes import make_engine


def test_export_records_only_the_logits_of_int8_cpu(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    assert set(golden.bit_exact) == {"int8-cpu"}
    backend = OnnxRuntimeCpu(tiny_bundle.read("int8-cpu.onnx"), Encoding.CPU, threads=1)
    logits = backend.run(golden.images)
    np.testing.assert_array_equal(
        logits.view(np.uint32), golden.bit_exact["int8-cpu"].view(np.uint32)
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_cpu_is_checked_bit_exactly(tiny_bundle: Bundle, threads: int) -> None:
    results = {r.encoding: r for r in verify(tiny_bundle, threads=threads).results}
    assert results[Encoding.CPU].rule is Rule.BIT_EXACT
    assert results[Encoding.CPU].verdict is Verdict.REPRODUCED
    others = [result for encoding, result in results.items() if encoding is not Encoding.CPU]
    assert {result.rule for result in others} == {Rule.SQNR}


class OneBitOff:
    """ONNX Runtime with the last logit of each batch replaced by the next larger float."""

    name = NAME

    def __init__(self, backend: OnnxRuntimeCpu) -> None:
        self._backend = backend

    def run(self, images: UInt8Array) -> Float32Array:
        logits = self._backend.run(images).copy()
        logits[-1, -1] = np.nextafter(logits[-1, -1], np.float32(np.inf))
        return logits

    def close(self) -> None:
        self._backend.close()


@pytest.fixture
def _other_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    original = next(engine for engine in registry.ENGINES if engine.name == NAME)
    engine = dataclasses.replace(
        original,
        open=lambda bundle, artifact, options: OneBitOff(open_artifact(bundle, artifact, options)),
    )
    monkeypatch.setattr(registry, "ENGINES", (engine,))


@pytest.mark.usefixtures("_other_rounding")
def test_one_different_bit_fails(tiny_bundle: Bundle) -> None:
    result = verify(tiny_bundle)
    by_name = {(line.precision, line.encoding): line for line in result.results}
    int8 = by_name[Precision.INT8, Encoding.CPU]
    assert (int8.verdict, int8.different) == (Verdict.FAIL, 3)  # the last of each batch of 8
    assert by_name[Precision.FP32, Encoding.FLOAT].verdict is Verdict.REPRODUCED
    text = verification_text(result)
    assert (
        f"int8-cpu on {NAME}: the logits of 3 golden images differ from those of the export" in text
    )


@pytest.mark.usefixtures("_other_rounding")
def test_load_skips_a_model_with_other_rounding(
    tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), load(tiny_bundle.path) as model:
        assert model.artifact.name == "fp32"
    assert "int8-cpu (2 of 2 images differ from the logits of the export)" in caplog.text


def test_other_engines_are_checked_by_sqnr(tiny_bundle: Bundle) -> None:
    engine: Engine = make_engine("gpu", ("int8-cpu",))
    artifact = tiny_bundle.artifact("int8-cpu")
    backend = engine.open(tiny_bundle, artifact, DEFAULT_OPTIONS)
    check = check_golden(backend, artifact, tiny_bundle.golden())
    assert (check.rule, check.different, check.passed) == (Rule.SQNR, 0, True)


def test_without_recorded_logits_sqnr_is_checked(tiny_bundle: Bundle) -> None:
    older = dataclasses.replace(tiny_bundle.golden(), bit_exact={})
    artifact = tiny_bundle.artifact("int8-cpu")
    backend = OnnxRuntimeCpu(tiny_bundle.read(artifact.file), artifact.encoding)
    check = check_golden(backend, artifact, older)
    assert (check.rule, check.passed) == (Rule.SQNR, True)
    assert "dB, limit" in check.figures


def test_counts_different_rows() -> None:
    ours = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    assert different_rows(ours, ours.copy()) == 0
    assert different_rows(ours, np.array([[-0.0, 1.0], [2.0, 3.0]], np.float32)) == 1


def test_bit_exact_logits_are_stored(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    data = Golden(images=golden.images, logits=golden.logits, bit_exact=golden.bit_exact).to_bytes()
    with np.load(io.BytesIO(data)) as arrays:
        assert set(arrays.files) == {"images", "logits", "bit-exact-int8-cpu"}
        np.testing.assert_array_equal(arrays["bit-exact-int8-cpu"], golden.bit_exact["int8-cpu"])


def test_rejects_bit_exact_logits_of_another_shape(tmp_path: Path, tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    bit_exact = {"int8-cpu": golden.bit_exact["int8-cpu"][:5]}
    data = dataclasses.replace(golden, bit_exact=bit_exact).to_bytes()
    (tmp_path / "golden.npz").write_bytes(data)
    record = dataclasses.replace(
        tiny_bundle.manifest.files["golden.npz"],
        bytes=len(data),
        sha256=sha256(data),
    )
    files = {**tiny_bundle.manifest.files, "golden.npz": record}
    bundle = Bundle(tmp_path, dataclasses.replace(tiny_bundle.manifest, files=files))
    with pytest.raises(BundleError, match=r"is float32 \(5, 3\)"):
        bundle.golden()
