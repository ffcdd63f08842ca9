"""Tests of `resdeploy export`, which writes a complete bundle or none."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import (
    Encoding,
    GoldenOrigin,
    GoldenRecord,
    GoldenReference,
    Precision,
)
from resdeploy.calibration.ranges import Range
from resdeploy.cli.export import export_text
from resdeploy.errors import (
    BackendError,
    BundleError,
    CalibrationError,
    CheckpointError,
    ExportError,
    OutputError,
)
from resdeploy.export import bundle_files, pipeline
from resdeploy.export.golden_images import choose_golden, make_golden
from resdeploy.export.graph.saturation import check_no_saturation
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.inputs import read_source
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.recipe import read_recipe
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.source import network
from resdeploy.export.source.network import TorchClassifier
from resdeploy.images.preprocessing import image_digest
from resdeploy.runtime.backends.onnxruntime.cpu import NAME as CPU
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.backends.tensorrt.build import choose_artifact
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, installed_version
from resdeploy.runtime.bench.contenders import best_candidates
from resdeploy.runtime.model import load
from resdeploy.runtime.verification.golden_check import INT8_FLOOR_DB
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.samples import SIZE, make_classifier


@pytest.fixture
def config(tiny_checkpoint: Path) -> ExportConfig:
    """Return the fastest export: FP32 only, with synthetic golden images."""
    return ExportConfig(source=tiny_checkpoint, output=Path("x.bundle"), image_size=SIZE)


def test_an_fp32_export_needs_no_images(config: ExportConfig) -> None:
    result = export(config)
    assert [artifact.file for artifact in result.artifacts] == ["fp32.onnx"]
    assert result.calibration is None
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.golden == GoldenRecord(
        images=32, origin=GoldenOrigin.SYNTHETIC, reference=GoldenReference.PYTORCH
    )
    text = export_text(result)
    assert "compared with PyTorch on 32 synthetic images: arithmetic only, not accuracy" in text
    page = (result.bundle / "report.html").read_text()
    assert "32 synthetic images: arithmetic only, not accuracy" in page
    assert 'class="verdict' not in page  # a bundle alone has passed nothing
    assert bundle.manifest.calibration is None
    assert sorted(os.listdir(result.bundle)) == [
        "README.md", "fp32.onnx", "golden.npz", "labels.txt", "manifest.json", "report.html",
        "sbom.cdx.json",
    ]  # fmt: skip


def test_the_bundle_is_named_after_the_source(config: ExportConfig) -> None:
    assert export(dataclasses.replace(config, output=None)).bundle == Path("tiny.bundle")


def test_artifacts_list_sizes_convolutions_and_parity(tiny_bundle: Bundle) -> None:
    artifacts = {artifact.name: artifact for artifact in tiny_bundle.manifest.artifacts}
    assert {name: (a.convs, a.int8_convs) for name, a in artifacts.items()} == {
        "fp32": (12, 0), "fp16": (12, 0), "int8": (12, 12), "int8-cpu": (12, 12),
    }  # fmt: skip
    assert all(a.bytes == (tiny_bundle.path / a.file).stat().st_size for a in artifacts.values())
    # Sizes are proportional to the bits of a weight, except for names and biases.
    for name, share in (("fp16", 0.5), ("int8", 0.25), ("int8-cpu", 0.25)):
        assert artifacts[name].bytes / artifacts["fp32"].bytes == pytest.approx(share, rel=0.05)
    assert artifacts["fp32"].parity.sqnr_db > 90
    assert artifacts["fp16"].parity.sqnr_db > 40
    assert artifacts["int8"].parity.sqnr_db > 10


def test_the_manifest_records_the_source_and_the_images(
    tiny_bundle: Bundle, tiny_checkpoint: Path
) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.model["source"] == tiny_checkpoint.name
    assert len(manifest.model["source_sha256"]) == 64
    assert manifest.calibration is not None
    assert manifest.calibration["images"] == len(manifest.calibration["image_sha256"]) == 32
    assert set(manifest.calibration["method"]) == {"tensorrt", "cpu"}


def test_no_golden_image_calibrates(tiny_bundle: Bundle, image_data: Path) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    golden = {image_digest(image) for image in tiny_bundle.golden().images}
    assert not golden & set(calibration["image_sha256"])


def test_calibration_json_rebuilds_both_int8_graphs_bit_for_bit(tiny_bundle: Bundle) -> None:
    for name, encoding in (("int8.onnx", Encoding.TENSORRT), ("int8-cpu.onnx", Encoding.CPU)):
        model = ir.from_proto(onnx.load_from_string(tiny_bundle.read("fp32.onnx")))
        recipe = read_recipe(tiny_bundle, encoding)
        assert to_bytes(recipe.apply(model)) == tiny_bundle.read(name)


def test_no_weights_of_the_cpus_graph_saturate(tiny_bundle: Bundle) -> None:
    model = ir.from_proto(onnx.load_from_string(tiny_bundle.read("int8-cpu.onnx")))
    check_no_saturation(model.graph)
    weight = next(value for name, value in model.graph.initializers.items() if "0.conv1.w" in name)
    assert weight.shape is not None
    weight.const_value = ir.tensor(np.full(weight.shape.numpy(), 65, np.int8))
    with pytest.raises(AssertionError, match="pairs of weights may saturate"):
        check_no_saturation(model.graph)


@pytest.fixture(scope="module")
def dla_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, image_data: Path
) -> Bundle:
    """Return a bundle with `int8-dla.onnx` whose other INT8 graphs keep a convolution in float."""

    def keep_one_in_float(calibration: Calibration, *arguments: Any) -> Calibration:
        recipes = {
            encoding: dataclasses.replace(recipe, in_float=frozenset({"layer2.0.conv1"}))
            for encoding, recipe in calibration.recipes.items()
        }
        return dataclasses.replace(calibration, recipes=recipes)

    config = ExportConfig(
        source=tiny_checkpoint, output=tmp_path_factory.mktemp("dla") / "dla.bundle",
        image_size=SIZE, int8=True, dla=True, calibration_data=image_data, calibration_images=32,
        min_agreement=100.0,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # The small network meets every target in INT8, so the search would keep no layer in float.
        patch.setattr(pipeline, "meet_accuracy_target", keep_one_in_float)
        return open_bundle(export(config).bundle)


def test_the_dlas_graph_has_a_calibrator_of_its_own(dla_bundle: Bundle) -> None:
    assert [(a.name, a.int8_convs) for a in dla_bundle.manifest.artifacts] == [
        ("fp32", 0), ("int8", 11), ("int8-cpu", 11), ("int8-dla", 12),
    ]  # fmt: skip
    dla = dla_bundle.artifact("int8-dla")
    assert (dla.precision, dla.encoding) == (Precision.INT8, Encoding.DLA)
    assert dla.parity.sqnr_db > INT8_FLOOR_DB
    recipe, cpu_recipe = (read_recipe(dla_bundle, kind) for kind in (Encoding.DLA, Encoding.CPU))
    assert recipe.ranges.keys() == cpu_recipe.ranges.keys()
    same_calibrator = recipe.calibrator == cpu_recipe.calibrator
    assert (recipe.ranges == cpu_recipe.ranges) == same_calibrator
    assert "int8-dla.onnx" in dla_bundle.read("report.html").decode()


def test_calibration_json_rebuilds_the_dlas_graph_bit_for_bit(dla_bundle: Bundle) -> None:
    model = ir.from_proto(onnx.load_from_string(dla_bundle.read("fp32.onnx")))
    recipe = read_recipe(dla_bundle, Encoding.DLA)
    assert to_bytes(recipe.apply(model)) == dla_bundle.read("int8-dla.onnx")


def test_the_dlas_graph_is_int8_and_float16_behind_the_normalisation(dla_bundle: Bundle) -> None:
    graph = ir.from_proto(onnx.load_from_string(dla_bundle.read("int8-dla.onnx"))).graph
    normalisation = {"normalize.scale", "normalize.shift"}
    types = {value.dtype for name, value in graph.initializers.items() if name not in normalisation}
    assert types == {ir.DataType.INT8, ir.DataType.FLOAT16}


def test_the_dlas_graph_is_verified_on_a_cpu_and_never_preferred(dla_bundle: Bundle) -> None:
    result = verify(dla_bundle, backend=CPU)
    assert result.verdict is Verdict.REPRODUCED
    assert Encoding.DLA in {line.encoding for line in result.results}
    assert candidates(dla_bundle, CPU)[-1].artifact.name == "int8-dla"
    assert "int8-dla" not in {c.artifact.name for c in best_candidates(dla_bundle, CPU)}
    with load(dla_bundle.path, backend=CPU) as model:
        assert model.artifact.name == "int8-cpu"


def test_a_build_for_the_dla_takes_its_graph(dla_bundle: Bundle, tiny_bundle: Bundle) -> None:
    chosen = choose_artifact(dla_bundle, Precision.INT8, dla=True)
    assert chosen == dla_bundle.artifact("int8-dla")
    with pytest.raises(BundleError, match="no int8-dla graph") as caught:
        choose_artifact(tiny_bundle, Precision.INT8, dla=True)
    assert "--int8 --dla" in str(caught.value.hint)


def test_rejects_a_dla_graph_without_int8(config: ExportConfig) -> None:
    with pytest.raises(ExportError, match="--dla applies only to INT8 graphs") as caught:
        export(dataclasses.replace(config, dla=True))
    assert caught.value.hint == "add --int8"
    assert nothing_is_left()


@pytest.mark.skipif(
    installed_version(Flavour.RTX) is None, reason="tensorrt-rtx has no wheel for this machine"
)
def test_engines_are_built_on_request(config: ExportConfig) -> None:
    result = export(dataclasses.replace(config, fp16=True, engine=True))
    assert [report.artifact for report in result.engines] == ["fp32", "fp16"]
    assert all(report.engine.is_file() for report in result.engines)
    assert all(str(report.engine) in export_text(result) for report in result.engines)


def test_engines_that_cannot_be_built_are_an_error_before_the_work(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(flavour: Flavour) -> None:
        raise BackendError("tensorrt is not installed", "install it")

    monkeypatch.setattr(pipeline, "load_tensorrt", missing)
    monkeypatch.setattr(
        pipeline, "read_source", lambda *a, **k: pytest.fail("the work has started")
    )
    with pytest.raises(BackendError, match="not installed"):
        export(dataclasses.replace(config, engine=True))


@pytest.mark.slow
def test_the_same_export_twice_gives_the_same_graphs(
    tiny_bundle: Bundle, tiny_checkpoint: Path, image_data: Path
) -> None:
    config = ExportConfig(
        source=tiny_checkpoint, output=Path("again.bundle"), image_size=SIZE, fp16=True, int8=True,
        calibration_data=image_data, calibration_images=32,
    )  # fmt: skip
    again = open_bundle(export(config).bundle).manifest.artifacts
    assert [a.sha256 for a in again] == [a.sha256 for a in tiny_bundle.manifest.artifacts]


@pytest.fixture(scope="module")
def wide(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, image_data: Path
) -> tuple[Bundle, Path]:
    """Return a bundle for images of 32 x 48 pixels and its model repository."""
    folder = tmp_path_factory.mktemp("wide")
    config = ExportConfig(
        source=tiny_checkpoint, output=folder / "wide.bundle", image_size=(32, 48), fp16=True,
        int8=True, dla=True, calibration_data=image_data, calibration_images=32,
        triton=folder / "triton",
    )  # fmt: skip
    return open_bundle(export(config).bundle), folder / "triton"


def test_every_graph_of_a_rectangle_is_verified(wide: tuple[Bundle, Path]) -> None:
    bundle, _ = wide
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    assert manifest["input"]["shape"] == ["batch", 32, 48, 3]
    assert manifest["preprocessing"]["image_size"] == [32, 48]
    assert bundle.golden().images.shape[1:] == (32, 48, 3)
    assert verify(bundle, backend=CPU).verdict is Verdict.REPRODUCED
    report = bundle.read("report.html").decode()
    assert "shape (batch, 32, 48, 3)" in report
    assert "covers 32x48, bilinear" in report


def test_a_rectangle_is_loaded_and_another_size_refused(wide: tuple[Bundle, Path]) -> None:
    with load(wide[0].path, backend=CPU) as model:
        assert model.predict(Image.new("RGB", (500, 300)))
        with pytest.raises(ValueError, match=r"the model takes uint8 \(N, 32, 48, 3\)"):
            model.run(np.zeros((1, 48, 32, 3), np.uint8))


def test_the_model_repository_of_a_rectangle_has_its_shape(wide: tuple[Bundle, Path]) -> None:
    _, repository = wide
    assert all("dims: [ 32, 48, 3 ]" in path.read_text() for path in repository.rglob("*.pbtxt"))
    (script,) = repository.glob("*.sh")
    assert "images:1x32x48x3" in script.read_text()


# Failures


def nothing_is_left() -> bool:
    return os.listdir() == []


def test_int8_needs_images(config: ExportConfig) -> None:
    with pytest.raises(CalibrationError, match="none are known") as caught:
        export(dataclasses.replace(config, int8=True))
    assert "--calibration-data" in str(caught.value.hint)
    assert nothing_is_left()


def test_a_truncated_calibration_image_is_logged_and_counted(
    config: ExportConfig, image_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data / "train" / "red", tmp_path / "photos")
    victim = data / "000.png"
    victim.write_bytes(victim.read_bytes()[:100])
    with caplog.at_level(logging.INFO, "resdeploy"):
        result = export(dataclasses.replace(config, int8=True, calibration_data=data))
    assert caplog.text.count("000.png") == 1
    assert "not used as calibration images: 1 unreadable" in caplog.messages
    assert (
        "used: 9 calibration images (at most 512); 5 further images, which only choose the "
        "calibrator; 5 golden images, which verify the graphs anywhere"
    ) in caplog.messages
    assert "9 of the calibration images also judge the INT8 graphs (at most 128 jud" in caplog.text
    assert "not used as held-out images" not in caplog.text  # the same files are not read again
    assert result.calibration is not None
    assert result.calibration.skipped["unreadable"] == 1
    # Of 20 files, 5 are golden, 1 is damaged, and 5 score the calibrators.
    assert result.calibration.images == 9
    assert result.calibration.scoring_images == 5


def test_rejects_an_existing_bundle_before_the_work(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.bundle").mkdir()
    monkeypatch.setattr(
        pipeline, "read_source", lambda *a, **k: pytest.fail("the work has started")
    )
    with pytest.raises(OutputError, match="exists already"):
        export(config)


def test_force_replaces_a_bundle(config: ExportConfig) -> None:
    Path("x.bundle").mkdir()
    Path("x.bundle/manifest.json").touch()
    Path("x.bundle/stale").touch()
    export(config, force=True)
    assert "stale" not in os.listdir("x.bundle")


def test_weights_that_overflow_are_refused_before_the_export(tmp_path: Path) -> None:
    state = make_classifier().network.state_dict()
    for name in state:
        if name.endswith(("bn1.weight", "bn2.weight")):
            state[name].fill_(9e9)  # less than the largest value of a file
    torch.save(state, tmp_path / "large.pth")
    with pytest.raises(CheckpointError, match="NaN or infinite logits"):
        export(ExportConfig(source=tmp_path / "large.pth", image_size=SIZE))


def test_a_graph_that_does_not_agree_is_not_written(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = to_onnx(make_classifier(seed=1), SIZE)
    monkeypatch.setattr(network, "to_onnx", lambda *arguments: wrong)
    with pytest.raises(ExportError, match=r"fp32\.onnx does not agree with PyTorch"):
        export(config)
    assert nothing_is_left()


def test_ranges_far_from_the_data_are_not_written(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch, image_data: Path
) -> None:
    """Use ranges so narrow, as from unsuitable images, that they clip most values."""

    def narrow(*arguments: object, **options: object) -> Calibration:
        calibration = calibrate(*arguments, **options)  # type: ignore[arg-type]
        recipes = {
            encoding: dataclasses.replace(
                recipe,
                ranges={
                    t: Range(low=r.low / 20, high=r.high / 20) for t, r in recipe.ranges.items()
                },
            )
            for encoding, recipe in calibration.recipes.items()
        }
        return dataclasses.replace(calibration, recipes=recipes)

    monkeypatch.setattr(pipeline, "calibrate", narrow)
    with pytest.raises(ExportError, match=r"int8\.onnx does not agree with PyTorch") as caught:
        export(dataclasses.replace(config, int8=True, calibration_data=image_data))
    assert "--calibration-data" in str(caught.value.hint)
    assert nothing_is_left()


def test_a_graph_that_permutes_its_batch_is_not_written(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = OnnxRuntimeCpu.run

    def reversed_run(self: OnnxRuntimeCpu, images: np.ndarray) -> np.ndarray:
        logits = original(self, images)
        return logits[::-1] if len(images) == bundle_files.ODD_BATCH else logits

    monkeypatch.setattr(OnnxRuntimeCpu, "run", reversed_run)
    with pytest.raises(ExportError, match=r"logits of fp32\.onnx depend on the batch size"):
        export(config)


@pytest.mark.parametrize("seed", range(1, 4))
def test_every_graph_agrees_on_any_golden_images(
    tiny_bundle: Bundle, tiny_checkpoint: Path, image_data: Path, seed: int
) -> None:
    """Check that INT8 values may differ by one step between batch sizes, as with some seeds."""
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    images, _ = choose_golden(source.pools, source.preprocessing, seed)
    golden = make_golden(TorchClassifier(make_classifier(), source.preprocessing), images)
    for artifact in tiny_bundle.manifest.artifacts:
        bundle_files.check_graph(
            tiny_bundle.read(artifact.file), artifact.file, artifact.precision, artifact.encoding,
            golden,
        )  # fmt: skip


def test_a_full_disk_leaves_nothing(config: ExportConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        export(config)
    assert nothing_is_left()


def test_an_interruption_leaves_nothing(
    config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_other_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(config)
    assert nothing_is_left()


def test_weights_outside_float16_leave_nothing(config: ExportConfig, tmp_path: Path) -> None:
    classifier = make_classifier()
    classifier.network.fc.weight.data[0, 0] = 1e6
    checkpoint = tmp_path.parent / "large.pth"
    torch.save(classifier.network.state_dict(), checkpoint)
    with pytest.raises(ExportError, match="largest float16 value"):
        export(dataclasses.replace(config, source=checkpoint, fp16=True))
    assert nothing_is_left()


# The report


def test_no_file_of_a_bundle_names_a_folder_of_this_machine(
    tiny_bundle: Bundle, tiny_checkpoint: Path, image_data: Path
) -> None:
    # All paths of this export were absolute.
    folders = [tiny_bundle.path.parent, tiny_checkpoint.parent, image_data.parent, Path(sys.prefix)]
    for path in tiny_bundle.path.iterdir():
        content = path.read_bytes()
        assert [folder for folder in folders if str(folder).encode() in content] == [], path.name


def test_the_report_shows_every_graph_and_loads_nothing(tiny_bundle: Bundle) -> None:
    page = tiny_bundle.read("report.html").decode().replace("\u00a0", " ")
    for artifact in tiny_bundle.manifest.artifacts:
        assert artifact.file in page
        assert f"{artifact.parity.sqnr_db:.1f} dB" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    # Four histograms show how the most sensitive tensors are clipped.
    assert page.count('class="clipped"') + page.count('class="value"') >= 4 * 64
    assert len(open_bundle(tiny_bundle.path).read("analysis.json")) > 1000


def test_golden_logits_in_the_bundle_are_pytorchs(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    with torch.inference_mode():
        expected = make_classifier()(torch.from_numpy(golden.images)).numpy()
    # The batch size differs, so the order of the sums differs.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(golden.logits, expected, rtol=0, atol=1e-5 * scale)
