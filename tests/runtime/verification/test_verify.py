"""Verification with golden images and with labelled folders."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.cli.verify import verification_text
from resdeploy.errors import BackendError, DataError
from resdeploy.filesystem import sha256
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.folder import read_batches
from resdeploy.report.accuracy import verification_section
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import (
    INT8_FLOOR_DB,
    INT8_MARGIN_DB,
    check_golden,
    floor_db,
    run_batches,
)
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.fakes import GoldenBackend, make_engine


def by_encoding(result: Verification) -> dict[tuple[str, str], Verdict]:
    return {(r.precision.value, r.encoding.value): r.verdict for r in result.results}


# Golden images


def test_every_artifact_passes_on_golden_images(tiny_bundle: Bundle) -> None:
    result = verify(tiny_bundle)
    assert result.verdict is Verdict.PASS
    assert result.images == 24
    assert result.max_drop is None
    expected = {
        ("fp32", "float"): Verdict.PASS,
        ("fp16", "float"): Verdict.PASS,
        ("int8", "cpu"): Verdict.PASS,
    }
    if "int8" in onnxruntime_cpu.artifacts(onnxruntime.__version__):
        expected["int8", "tensorrt"] = Verdict.PASS
    assert by_encoding(result) == expected


def test_verifies_only_the_chosen_precision(tiny_bundle: Bundle) -> None:
    assert set(by_encoding(verify(tiny_bundle, precision="fp16"))) == {("fp16", "float")}


def test_an_engine_with_wrong_logits_fails(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = (make_engine(), make_engine("broken", factor=0.9))
    monkeypatch.setattr(registry, "ENGINES", engines)
    result = verify(tiny_bundle)
    assert [r.verdict for r in result.results] == [Verdict.PASS, Verdict.FAIL]
    assert result.verdict is Verdict.FAIL


def test_floors_follow_the_export(tiny_bundle: Bundle) -> None:
    int8 = tiny_bundle.artifact("int8-cpu")
    assert floor_db(int8) == int8.parity.sqnr_db - INT8_MARGIN_DB
    ruined = dataclasses.replace(int8, parity=dataclasses.replace(int8.parity, sqnr_db=9.0))
    assert floor_db(ruined) == INT8_FLOOR_DB
    assert floor_db(tiny_bundle.artifact("fp32")) > floor_db(tiny_bundle.artifact("fp16"))


def test_nan_does_not_pass(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    backend = GoldenBackend(golden, factor=float("nan"))
    assert not check_golden(backend, tiny_bundle.artifact("fp32"), golden).passed


def test_run_batches_concatenates_batches_of_any_size(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    for batch in (1, 5, 24, 100):
        np.testing.assert_array_equal(
            run_batches(GoldenBackend(golden), golden.images, batch), golden.logits
        )


# Labelled folders


def test_top1_follows_from_the_logits(tiny_bundle: Bundle, image_data: Path) -> None:
    images = read_image_folder(image_data / "val")
    (batch,) = read_batches(images.files, tiny_bundle.manifest.preprocessing, 100)
    backend = OnnxRuntimeCpu(tiny_bundle.read("fp32.onnx"), Encoding.FLOAT)
    right = backend.run(batch.images).argmax(1) == images.labels
    result = verify(tiny_bundle, data=image_data, precision="fp32")
    assert result.images == 24
    assert result.results[0].top1 == pytest.approx(100 * right.mean())
    assert result.results[0].baseline_top1 == result.results[0].top1
    assert result.verdict is Verdict.PASS


def test_the_baseline_must_pass_the_golden_check(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    # The graph of another network, with its sha256 in the manifest.
    pytest.importorskip("torch")
    from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
    from tests.samples import make_classifier

    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    graph = to_bytes(to_onnx(make_classifier(seed=1), 32))
    (copy / "fp32.onnx").write_bytes(graph)
    fp32 = dataclasses.replace(tiny_bundle.artifact("fp32"), bytes=len(graph), sha256=sha256(graph))
    bundle = Bundle(copy, dataclasses.replace(tiny_bundle.manifest, artifacts=(fp32,)))
    result = verify(bundle, data=image_data, precision="fp32", max_drop=100)
    assert result.verdict is Verdict.FAIL
    assert result.results[0].sqnr_db < 20


def test_uses_the_val_folder(tiny_bundle: Bundle, image_data: Path) -> None:
    whole = verify(tiny_bundle, data=image_data, precision="fp16", max_drop=100)
    direct = verify(tiny_bundle, data=image_data / "val", precision="fp16", max_drop=100)
    # The environments differ: they hold the date and the temperature.
    assert dataclasses.replace(whole, environment=direct.environment) == direct


def test_drop_is_the_difference_and_below_its_bound(tiny_bundle: Bundle, image_data: Path) -> None:
    for line in verify(tiny_bundle, data=image_data, max_drop=100).results:
        assert line.top1 is not None
        assert line.baseline_top1 is not None
        assert line.drop == pytest.approx(line.baseline_top1 - line.top1)
        assert line.drop is not None
        assert line.drop_upper95 is not None
        assert line.drop_upper95 >= line.drop


def test_few_images_are_inconclusive(tiny_bundle: Bundle, image_data: Path) -> None:
    result = verify(tiny_bundle, data=image_data, max_drop=0.5)
    verdicts = by_encoding(result)
    assert verdicts["fp32", "float"] is Verdict.PASS  # against itself
    assert verdicts["fp16", "float"] is Verdict.INCONCLUSIVE
    assert result.verdict is Verdict.INCONCLUSIVE


def test_counts_images_used_for_calibration(tiny_bundle: Bundle, image_data: Path) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    used = [*calibration["image_sha256"], *calibration["selection_sha256"]]
    result = verify(tiny_bundle, data=image_data / "train", precision="fp32")
    assert result.used_before == len(used) == 32 + calibration["scoring_images"]
    assert f"INT8 ranges or layers on {len(used)} images" in verification_text(result)
    assert verify(tiny_bundle, data=image_data / "val", precision="fp32").used_before == 0


def test_counts_and_skips_unreadable_images(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(image_data / "val", tmp_path / "val")
    (data / "blue" / "000.png").write_bytes(b"")
    (data / "blue" / "001.png").rename(data / "blue" / "001.tif")
    result = verify(tiny_bundle, data=data, precision="fp32")
    assert (result.images, result.unreadable, result.passed_over) == (22, 1, {".tif": 1})
    assert "passed over 1 file (.tif 1)" in verification_text(result)
    section = str(verification_section(result))
    assert "Passed over 1 file (.tif 1)." in section
    for picture in data.rglob("*.png"):
        picture.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 23 images .*: it is empty"):
        verify(tiny_bundle, data=data)


def test_rejects_folders_that_are_no_labels(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_data / "val" / "red", tmp_path / "data" / "crimson")
    with pytest.raises(DataError, match="'crimson' is not one of the model's 3 labels"):
        verify(tiny_bundle, data=tmp_path / "data")


def test_rejects_an_unknown_backend(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError):
        verify(tiny_bundle, backend="abacus")


def test_precisions_are_listed_in_order(tiny_bundle: Bundle) -> None:
    order = [r.precision for r in verify(tiny_bundle).results]
    assert order == sorted(order, key=list(Precision).index)
