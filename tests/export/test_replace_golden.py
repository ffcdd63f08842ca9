"""Golden images of a bundle are replaced completely or not at all."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from resdeploy.bundle.analysis import read_analysis, worst_int8
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import (
    ExportWarning,
    GoldenOrigin,
    GoldenReference,
    write_manifest,
)
from resdeploy.cli.export import golden_text
from resdeploy.errors import BundleError, DataError, ExportError, OutputError
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.replace_golden import replace_golden
from resdeploy.filesystem import sha256_file
from resdeploy.runtime.backends.base import DEFAULT_OPTIONS
from resdeploy.runtime.backends.onnxruntime.cpu import open_artifact
from resdeploy.runtime.verification.golden_check import run_batches
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.samples import SIZE, write_images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    write_images(folder, 4, seed=7)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_a_bundle_with_synthetic_images_takes_real_ones(
    tiny_checkpoint: Path, pictures: Path
) -> None:
    config = ExportConfig(source=tiny_checkpoint, output=Path("x.bundle"), image_size=SIZE)
    before = open_bundle(export(config).bundle)
    graph = sha256_file(before.path / "fp32.onnx")
    result = replace_golden(before, pictures, before.path, force=True)
    assert result.bundle == before.path
    after = open_bundle(before.path)
    assert (after.manifest.golden, result.golden.images) == (result.golden, 12)
    assert result.golden.origin is GoldenOrigin.DATA
    assert result.golden.reference is GoldenReference.FP32
    assert "the reference of every graph is now fp32.onnx" in golden_text(result)
    assert after.manifest.artifacts[0].parity.images == 12
    assert sha256_file(after.path / "fp32.onnx") == graph
    for name in after.manifest.files:
        after.read(name)  # checks the digest
    page = after.read("report.html").decode().replace("\u00a0", " ")
    assert "12 golden images" in page
    assert "of fp32.onnx in FP32, with which each graph in ONNX Runtime on a CPU is" in page
    assert "synthetic" not in page
    assert verify(after).verdict is Verdict.REPRODUCED
    assert [path.name for path in Path().iterdir()] == ["x.bundle"]


def test_everything_that_depends_on_the_images_is_new(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    untouched = digests(tiny_bundle.path)
    replace_golden(tiny_bundle, pictures, tmp_path / "new.bundle")
    assert digests(tiny_bundle.path) == untouched
    changed = {
        name
        for name, digest in digests(tmp_path / "new.bundle").items()
        if digest != untouched[name]
    }
    assert changed == {
        "golden.npz", "report.html", "README.md", "manifest.json", "analysis.json"
    }  # fmt: skip
    bundle = open_bundle(tmp_path / "new.bundle")
    old, new = read_analysis(tiny_bundle), read_analysis(bundle)
    worst = worst_int8(bundle.manifest.artifacts)
    assert old is not None
    assert new is not None
    assert worst is not None
    assert new.encoding is worst.encoding
    assert new.layers != old.layers
    assert [plot.heights for plot in new.histograms] == [plot.heights for plot in old.histograms]
    golden = bundle.golden()
    for artifact in bundle.manifest.artifacts:
        backend = open_artifact(bundle, artifact, DEFAULT_OPTIONS)
        logits = run_batches(backend, golden.images)
        assert artifact.parity.max_error == pytest.approx(
            float(np.abs(logits - golden.logits).max())
        )
        if artifact.name == "fp32":
            np.testing.assert_array_equal(run_batches(backend, golden.images, 1), golden.logits)
        backend.close()
    assert set(golden.bit_exact) == {"int8-cpu"}
    line = verify(bundle, precision="int8").results[0]
    assert (line.rule.value, line.different, line.verdict) == (
        "bit-exact", 0, Verdict.REPRODUCED,
    )  # fmt: skip


def test_warnings_of_others_stay_and_those_about_quality_are_new(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    from resdeploy.bundle.quality import quality_warnings

    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    artifacts = tuple(
        dataclasses.replace(
            a,
            quality=None,
            parity=dataclasses.replace(a.parity, images=32, agreement=agreement, sqnr_db=sqnr_db),
        )
        for a in tiny_bundle.manifest.artifacts
        for agreement, sqnr_db in [(50.0, 13.0) if a.name == "int8" else (100.0, 123.0)]
    )
    manifest = dataclasses.replace(tiny_bundle.manifest, artifacts=artifacts, warnings=())
    foreign = ExportWarning(message="the labels are in another order", hint="sort them")
    old = quality_warnings(manifest)
    assert [warning.artifacts for warning in old] == [("int8",)]
    write_manifest(copy, dataclasses.replace(manifest, warnings=(foreign, *old)))
    result = replace_golden(open_bundle(copy), pictures, tmp_path / "new.bundle")
    assert result.warnings[0] == foreign
    assert old[0] not in result.warnings
    assert result.warnings[1:] == tuple(
        quality_warnings(open_bundle(tmp_path / "new.bundle").manifest)
    )


def test_an_unreadable_picture_is_refused_and_nothing_changes(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "photos")
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG not a picture")
    copy = Bundle(shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle"), tiny_bundle.manifest)
    before = digests(copy.path)
    with pytest.raises(DataError, match=r"broken\.png"):
        replace_golden(copy, folder, copy.path, force=True)
    assert digests(copy.path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.bundle", "photos"]


def test_images_that_calibrated_are_not_golden(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    used = {*calibration["image_sha256"], *calibration["selection_sha256"]}
    assert len(used) < 60
    result = replace_golden(tiny_bundle, image_data / "train", tmp_path / "new.bundle")
    assert result.golden.images == min(32, 60 - len(used))
    everything = dataclasses.replace(
        tiny_bundle.manifest, calibration={**calibration, "image_sha256": _all(image_data)}
    )
    with pytest.raises(DataError, match="calibrated the bundle"):
        replace_golden(Bundle(tiny_bundle.path, everything), image_data, tmp_path / "b.bundle")


def _all(folder: Path) -> list[str]:
    from resdeploy.images.folder import list_images
    from resdeploy.images.loading import load_image
    from resdeploy.images.preprocessing import Preprocessing, image_digest

    preprocessing = Preprocessing.standard(SIZE)
    return [image_digest(load_image(path, preprocessing)) for path in list_images(folder)]


def test_an_existing_bundle_needs_force(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="exists already"):
        replace_golden(tiny_bundle, pictures, tiny_bundle.path)
    with pytest.raises(DataError, match="there is no folder"):
        replace_golden(tiny_bundle, tmp_path / "nowhere", tmp_path / "new.bundle")


def test_a_damaged_bundle_is_refused(tiny_bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    (copy / "labels.txt").write_text("other")
    with pytest.raises(BundleError, match="was changed"):
        replace_golden(open_bundle(copy), pictures, tmp_path / "new.bundle")
    assert not (tmp_path / "new.bundle").exists()


def test_a_graph_that_differs_on_the_pictures_is_refused(
    tiny_bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resdeploy.export import bundle_files

    monkeypatch.setattr(bundle_files, "INT8_FLOOR_DB", 150.0)
    with pytest.raises(ExportError, match=r"int8\.onnx does not agree with fp32\.onnx"):
        replace_golden(tiny_bundle, pictures, tmp_path / "new.bundle")
    assert not (tmp_path / "new.bundle").exists()


def test_an_export_takes_golden_images_of_a_folder(
    tiny_checkpoint: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ExportConfig(
        source=tiny_checkpoint, output=Path("x.bundle"), image_size=SIZE, golden_data=pictures
    )
    with caplog.at_level(logging.WARNING):
        golden = export(config).golden
    assert (golden.images, golden.origin) == (12, GoldenOrigin.DATA)
    assert golden.reference is GoldenReference.PYTORCH
