"""Tests of the comparison of two bundles and of two files of benchmarks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import CALIBRATION, LABELS, REPORT, Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, Encoding, FileRecord, write_manifest
from resdeploy.errors import BundleError, DataError, DocumentError
from resdeploy.filesystem import sha256
from resdeploy.images.class_folders import hold_out, names_digest, read_image_folder
from resdeploy.images.preprocessing import CropOffset, Interpolation, ResizeMode, UInt8Array
from resdeploy.json_documents import jsonable, parse
from resdeploy.report.comparison import comparison_text
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.comparison import Comparison
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Engine
from resdeploy.runtime.comparison.accuracy import images_for_drop, judge_drop
from resdeploy.runtime.comparison.compare import CompareConfig, compare, compare_bundles
from resdeploy.statistics import PairedAccuracy, Verdict
from tests.fakes import colour_engine
from tests.results import benchmark
from tests.samples import CLASSES, rename_folders, write_images

UNTIMED = CompareConfig(seconds=0)
IMAGES = 5000


def copy_bundle(
    bundle: Bundle,
    folder: Path,
    change: Callable[[Any], None] | None = None,
    edited: Collection[str] | None = None,
) -> Bundle:
    """Copy a bundle; `change` may modify the content of its calibration.json.

    The files of the artifacts `edited`, by default of all, get another hash, but compute the same.
    """
    shutil.copytree(bundle.path, folder)
    artifacts = []
    for artifact in bundle.manifest.artifacts:
        if edited is None or artifact.name in edited:
            content = bundle.read(artifact.file) + b"\x32\x01x"  # ModelProto.doc_string = "x"
            (folder / artifact.file).write_bytes(content)
            artifact = dataclasses.replace(artifact, bytes=len(content), sha256=sha256(content))
        artifacts.append(artifact)
    manifest = dataclasses.replace(bundle.manifest, artifacts=tuple(artifacts))
    write_manifest(folder, manifest)
    if change:
        document = json.loads(bundle.read(CALIBRATION))
        change(document)
        content = json.dumps(document).encode()
        (folder / CALIBRATION).write_bytes(content)
        record = FileRecord(bytes=len(content), sha256=sha256(content))
        manifest = dataclasses.replace(manifest, files={**manifest.files, CALIBRATION: record})
        write_manifest(folder, manifest)
    return Bundle(folder, manifest)


class Oracle:
    """A backend that reads the class from the red value, and errs at one green value.

    Its logits are multiples of `size`.
    """

    name = "oracle"

    def __init__(self, wrong_at: int | None, size: float = 1.0) -> None:
        self._wrong_at, self._size = wrong_at, np.float32(size)

    def run(self, images: UInt8Array) -> Float32Array:
        classes = images[:, 0, 0, 0] // 60
        if self._wrong_at is not None:
            classes = (classes + (images[:, 0, 0, 1] == self._wrong_at)) % len(CLASSES)
        return self._size * np.eye(len(CLASSES), dtype=np.float32)[classes]

    def close(self) -> None:
        pass


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_artifact(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> Oracle:
        name = bundle.path.name
        return Oracle(250 if "worse" in name else None, 1.01 if "rounded" in name else 1.0)

    engine = Engine(
        name="oracle",
        open=open_artifact,
        check_availability=lambda: None,
        version=lambda: "1",
        artifacts=lambda version: ("fp32",),
    )
    monkeypatch.setattr(registry, "ENGINES", (engine,))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return 5,000 pictures of one colour; every 200th has the green value of an error."""
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
    saved: dict[tuple[int, int, int], Path] = {}
    for index in range(IMAGES):
        label = index % len(CLASSES)
        colour = (60 * label + 10, 250 if index % 200 == 0 else 0, 0)
        path = tmp_path / "data" / CLASSES[label] / f"{index:04d}.bmp"
        first = saved.setdefault(colour, path)
        if first is path:
            Image.new("RGB", (32, 32), colour).save(path)
        else:
            path.hardlink_to(first)
    return tmp_path / "data"


def test_a_drop_of_half_a_point_on_5000_images_fails(
    tiny_bundle: Bundle, tmp_path: Path, oracles: None, pictures: Path
) -> None:
    worse = copy_bundle(tiny_bundle, tmp_path / "worse.bundle")
    config = dataclasses.replace(UNTIMED, data=pictures)
    result = compare_bundles(tiny_bundle, worse, config)
    (line,) = result.accuracy
    assert (line.images, line.lost, line.gained, line.different) == (IMAGES, 25, 0, 25)
    assert line.drop == pytest.approx(0.5)
    assert line.drop_low > 0.2
    assert result.verdict is line.verdict is Verdict.FAIL
    assert compare_bundles(worse, tiny_bundle, config).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [
        (25, 0, Verdict.FAIL),
        (87, 62, Verdict.FAIL),  # half a point among many changed predictions
        (3, 3, Verdict.PASS),
        (12, 4, Verdict.INCONCLUSIVE),  # a drop that may be small enough
        (300, 275, Verdict.INCONCLUSIVE),  # half a point that may be chance
    ],
)
def test_a_significant_drop_above_the_limit_fails(lost: int, gained: int, verdict: Verdict) -> None:
    paired = PairedAccuracy(
        images=5000, baseline_correct=4000, candidate_correct=4000 - lost + gained, lost=lost,
        gained=gained,
    )  # fmt: skip
    assert judge_drop(paired, 0.2) is verdict


def test_a_copy_of_a_bundle_passes_on_few_images(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle")
    result = compare_bundles(tiny_bundle, copy, UNTIMED)
    assert result.verdict is Verdict.REPRODUCED  # golden images do not judge accuracy
    assert not result.identical
    assert comparison_text(result).count("bit-identical") == len(result.accuracy)
    assert {line.different for line in result.accuracy} == {0}
    assert len(result.accuracy) >= 3
    assert not result.latency
    assert not result.layers
    assert not result.missing


def test_only_images_that_neither_network_has_learned_count(
    tiny_bundle: Bundle, tmp_path: Path, oracles: None
) -> None:
    data = tmp_path / "data"
    for label, name in enumerate(CLASSES):
        (data / name).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (32, 32), (60 * label, 0, 0)).save(data / name / f"{index:03d}.bmp")
    parts = [hold_out(read_image_folder(data), seed)[1] for seed in range(9)]
    common = {*parts[0].files} & {*parts[3].files}
    assert 0 < len(common) < 12
    plain = copy_bundle(tiny_bundle, tmp_path / "plain.bundle")

    def trained(bundle: Bundle, seed: int, digest: str = "") -> Bundle:
        record = {"seed": seed, "sha256": digest or names_digest(parts[seed], data)}
        model = {**bundle.manifest.model, "held_out": record}
        manifest = dataclasses.replace(bundle.manifest, model=model)
        return dataclasses.replace(bundle, manifest=manifest)

    config = dataclasses.replace(UNTIMED, data=data)
    for first, second, count in (
        (trained(tiny_bundle, 0), plain, 12),
        (tiny_bundle, trained(plain, 1), 12),
        (trained(tiny_bundle, 1), trained(plain, 1), 12),
        (trained(tiny_bundle, 0), trained(plain, 3), len(common)),
    ):
        result = compare_bundles(first, second, config)
        assert result.accuracy[0].images == count
        assert ("held out different images" in str(result.notices)) == (count < 12)
    result = compare_bundles(trained(tiny_bundle, 0, "of others"), trained(plain, 1), config)
    assert "12 that neither network is known to have learned" in str(result.notices)
    assert not {*parts[1].files} & {*parts[8].files}
    with pytest.raises(DataError, match="was learned by one of the networks"):
        compare_bundles(trained(tiny_bundle, 1), trained(plain, 8), config)


def test_few_images_are_inconclusive_if_logits_differ(
    tiny_bundle: Bundle, tmp_path: Path, oracles: None
) -> None:
    worse = copy_bundle(tiny_bundle, tmp_path / "worse.bundle")
    pixels = tmp_path / "data" / "red"
    pixels.mkdir(parents=True)
    Image.new("RGB", (32, 32), (130, 250, 0)).save(pixels / "0.bmp")
    Image.new("RGB", (32, 32), (130, 0, 0)).save(pixels / "1.bmp")
    (pixels / "2.bmp").touch()
    (pixels / "3.gif").write_bytes(b"GIF89a")
    config = dataclasses.replace(UNTIMED, data=tmp_path / "data")
    result = compare_bundles(tiny_bundle, worse, config)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert (result.unreadable, result.passed_over) == (1, {".gif": 1})
    text = comparison_text(result)
    assert "skipped 1 image that could not be decoded\npassed over 1 file (.gif 1)" in text
    assert "verdict: inconclusive" in text
    needed = result.accuracy[0].images_to_decide
    assert needed is not None
    assert 2 < needed < 100
    assert text.splitlines()[2].endswith(f" {needed}")
    assert "accuracy on 2 images; " in text


def test_fp32_of_the_same_weights_needs_no_images(
    tiny_bundle: Bundle, tmp_path: Path, oracles: None
) -> None:
    rounded = copy_bundle(tiny_bundle, tmp_path / "rounded.bundle")
    pixels = tmp_path / "data" / "red"
    pixels.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (32, 32), (130, number, 0)).save(pixels / f"{number}.bmp")
    config = dataclasses.replace(UNTIMED, data=tmp_path / "data")
    result = compare_bundles(tiny_bundle, rounded, config)
    (line,) = result.accuracy
    assert line.different == line.images == 2
    assert (line.verdict, line.drop_low, line.drop_high) == (Verdict.PASS, 0.0, 0.0)
    assert "same weights" in comparison_text(result)
    model = {**tiny_bundle.manifest.model, "source_sha256": "another"}
    retrained = dataclasses.replace(rounded.manifest, model=model)
    result = compare_bundles(tiny_bundle, dataclasses.replace(rounded, manifest=retrained), config)
    assert result.verdict is Verdict.INCONCLUSIVE


def test_rejects_labels_in_another_order(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (colour_engine(),))
    write_images(tmp_path / "data", 8, seed=5)
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle")
    renamed = rename_folders(tmp_path / "data", tmp_path / "renamed")
    config = dataclasses.replace(UNTIMED, data=renamed)
    with pytest.raises(DataError, match=r"renamed for .*tiny.bundle are not in the order.*3 of 3"):
        compare_bundles(tiny_bundle, copy, config)
    right = dataclasses.replace(config, data=tmp_path / "data")
    assert compare_bundles(tiny_bundle, copy, right).verdict is Verdict.PASS


def test_a_useless_second_bundle_fails_and_a_useless_first_is_an_error(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (colour_engine(),))
    write_images(tmp_path / "data", 60, seed=0)
    constant = copy_bundle(tiny_bundle, tmp_path / "constant.bundle")
    config = dataclasses.replace(UNTIMED, data=tmp_path / "data")
    assert compare_bundles(tiny_bundle, constant, config).verdict is Verdict.FAIL
    with pytest.raises(DataError, match=r"for .*constant.bundle are correct for 33.3 % of 180"):
        compare_bundles(constant, tiny_bundle, config)


def test_lists_layers_whose_precision_changed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["cpu"]["in_float"] = ["layer1.0.conv1", "layer1.0.conv2"]
        document["tensorrt"]["calibrator"] = "guess"

    other = copy_bundle(tiny_bundle, tmp_path / "other.bundle", change)
    changed = compare_bundles(tiny_bundle, other, UNTIMED)
    by_encoding = {change.encoding: change for change in changed.layers}
    assert by_encoding[Encoding.CPU].to_float == ("layer1.0.conv1", "layer1.0.conv2")
    assert by_encoding[Encoding.TENSORRT].calibrators[1] == "guess"
    reverse = compare_bundles(other, tiny_bundle, UNTIMED)
    assert "2 layers from float to INT8 (layer1.0.conv1, layer1.0.conv2)" in comparison_text(
        reverse
    )


def test_a_missing_artifact_fails(tiny_bundle: Bundle) -> None:
    artifacts = tiny_bundle.manifest.artifacts[:2]
    fewer = dataclasses.replace(tiny_bundle.manifest, artifacts=artifacts)
    result = compare_bundles(tiny_bundle, Bundle(tiny_bundle.path, fewer), UNTIMED)
    assert result.verdict is Verdict.FAIL
    assert result.missing == ("int8", "int8-cpu")
    text = comparison_text(result)
    assert f"only in {result.first}: int8, int8-cpu" in text
    assert f"missing in {result.second}: int8, int8-cpu" in text.splitlines()[-1]


def test_golden_images_need_the_same_size(tiny_bundle: Bundle) -> None:
    preprocessing = dataclasses.replace(
        tiny_bundle.manifest.preprocessing, image_size=64, resize=64
    )
    larger = dataclasses.replace(tiny_bundle.manifest, preprocessing=preprocessing)
    with pytest.raises(BundleError, match="image_size of their pre-processing is 32 and 64"):
        compare_bundles(tiny_bundle, Bundle(tiny_bundle.path, larger), UNTIMED)


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 40},
        {"reducing_gap": 3.0},
        {"interpolation": Interpolation.BICUBIC},
        {"resize_mode": ResizeMode.SQUASH},
        {"antialias": False},
        {"crop_offset": CropOffset.DOWN},
    ],
)
def test_golden_images_do_not_hide_another_resizing(
    tiny_bundle: Bundle, change: dict[str, Any]
) -> None:
    """Golden images are resized already, so all logits would be bit-identical."""
    preprocessing = dataclasses.replace(tiny_bundle.manifest.preprocessing, **change)
    other = dataclasses.replace(tiny_bundle.manifest, preprocessing=preprocessing)
    with pytest.raises(BundleError, match=f"{next(iter(change))} of their pre-processing is"):
        compare_bundles(tiny_bundle, Bundle(tiny_bundle.path, other), UNTIMED)


def test_another_order_of_classes_is_not_identical(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = copy_bundle(tiny_bundle, tmp_path / "other.bundle", edited=())
    content = "\n".join(reversed(CLASSES)).encode()
    (other.path / LABELS).write_bytes(content)
    record = FileRecord(bytes=len(content), sha256=sha256(content))
    manifest = dataclasses.replace(other.manifest, files={**other.manifest.files, LABELS: record})
    with pytest.raises(BundleError, match="the order of their classes"):
        compare_bundles(tiny_bundle, Bundle(other.path, manifest), UNTIMED)


# Identical bundles


def test_identical_bundles_pass_without_running(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", ())  # nothing can run
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle", edited=())
    result = compare(str(tiny_bundle.path), str(copy.path), CompareConfig())
    assert (result.verdict, result.identical) == (Verdict.PASS, True)
    assert not result.accuracy
    assert not result.latency
    (reason,) = result.notices
    assert "same sha256 of fp32.onnx, fp16.onnx, int8.onnx, int8-cpu.onnx" in reason
    assert "differ only" not in reason
    text = comparison_text(result)
    assert reason in text
    assert "verdict: pass; the bundles are identical" in text
    assert parse(Comparison, json.loads(json.dumps(jsonable(result)))) == result
    (tmp_path / "link").symlink_to(tiny_bundle.path)
    itself = compare(str(tiny_bundle.path), str(tmp_path / "link"), CompareConfig())
    assert itself.identical
    same = compare(str(tiny_bundle.path), str(tiny_bundle.path), CompareConfig())
    assert same.first.endswith(" (first)")
    assert same.second == f"{same.first.removesuffix('(first)')}(second)"


def test_names_what_differs_between_identical_bundles(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle", edited=())
    record = FileRecord(bytes=1, sha256=sha256(b"x"))
    other = dataclasses.replace(
        copy.manifest, files={**copy.manifest.files, REPORT: record}, provenance={"date": "x"}
    )
    result = compare_bundles(tiny_bundle, Bundle(copy.path, other), UNTIMED)
    assert result.identical
    assert result.notices[0].endswith("they differ only in report.html, provenance")


def test_a_graph_that_was_changed_later_is_not_identical(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The hash in the manifest is not evidence of the file's content."""
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle", edited=())
    with (copy.path / "int8.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"changed")
    with pytest.raises(BundleError, match=r"int8\.onnx was changed"):
        compare_bundles(tiny_bundle, copy, UNTIMED)


def test_a_graph_with_the_same_hash_is_not_timed(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resdeploy.runtime.comparison import latency

    monkeypatch.setattr(latency, "compare_latency", None)  # a measurement would fail
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle", edited=["fp32"])
    config = CompareConfig(precision="int8")
    result = compare_bundles(tiny_bundle, copy, config)
    assert result.verdict is Verdict.REPRODUCED
    assert "the latency of int8-cpu was not measured: both files have the same sha256" in (
        comparison_text(result)
    )


# How many images decide


@pytest.mark.parametrize(
    ("images", "lost", "gained"),
    [(5000, 0, 0), (5000, 25, 0), (5000, 3, 3), (4, 0, 0), (4, 1, 0), (5000, 12, 4), (500, 0, 9)],
)
def test_the_estimated_number_of_images_decides(images: int, lost: int, gained: int) -> None:
    measured = PairedAccuracy(
        images=images, baseline_correct=0, candidate_correct=0, lost=lost, gained=gained
    )
    needed = images_for_drop(measured, 0.2)
    assert needed is not None
    is_open = judge_drop(measured, 0.2) is Verdict.INCONCLUSIVE
    assert (needed > images) == is_open
    # With many times as many images of each kind, whole counts are as good as fractions.
    scale = 1000 if lost or gained else 1
    at = [
        dataclasses.replace(
            measured,
            images=number,
            lost=round(lost * number / images),
            gained=round(gained * number / images),
        )
        for number in (needed, scale * needed)
    ]
    assert judge_drop(at[1], 0.2) is not Verdict.INCONCLUSIVE
    if scale == 1:
        assert judge_drop(at[0], 0.2) is Verdict.PASS
        # The estimate is rounded up to two digits, that is, by at most 10 %.
        fewer = dataclasses.replace(measured, images=int(0.85 * needed))
        assert judge_drop(fewer, 0.2) is Verdict.INCONCLUSIVE


def test_no_number_of_images_decides_a_drop_at_the_limit() -> None:
    paired = PairedAccuracy(
        images=1000, baseline_correct=900, candidate_correct=890, lost=10, gained=0
    )
    assert images_for_drop(paired, 1.0) is None


def test_times_both_bundles(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resdeploy.runtime.comparison import latency

    monkeypatch.setattr(latency, "INTERIM_STARTS", (8,))
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.0)
    # A call takes less than a millisecond. A busy machine may make it ten times as long, but not
    # a thousand times.
    config = CompareConfig(precision="int8", threads=1, max_slowdown=100_000)
    copy = copy_bundle(tiny_bundle, tmp_path / "copy.bundle")
    result = compare(str(tiny_bundle.path), str(copy.path), config)
    (line,) = result.latency  # without the graph for TensorRT
    assert (line.graph, line.samples, line.threads) == ("int8-cpu", 8, 1)
    assert line.slowdown_low <= line.slowdown <= line.slowdown_high
    assert line.samples_to_decide == 8
    assert line.seconds is not None
    assert (
        f"int8-cpu after {line.seconds:.0f} s (8 starts of both): latency decided"
        in comparison_text(result)
    )
    assert (line.verdict, result.verdict) == (Verdict.PASS, Verdict.REPRODUCED)
    assert parse(Comparison, json.loads(json.dumps(jsonable(result)))) == result


def replace_times(document: Benchmark, factor: float) -> Benchmark:
    """Return the benchmark with the times of all contenders but PyTorch multiplied."""
    results = tuple(
        line
        if line.contender == "pytorch-eager"
        else dataclasses.replace(line, round_ms=tuple(factor * time for time in line.round_ms))
        for line in document.results
    )
    return dataclasses.replace(document, results=results)


def test_compares_files_of_benchmarks(tmp_path: Path, tiny_bundle: Bundle) -> None:
    days = [benchmark(date=f"2026-11-{day}T10:00:00+00:00", seed=day) for day in (23, 24)]
    (tmp_path / "all.json").write_text(json.dumps([jsonable(day) for day in days]))
    name = str(tmp_path / "all.json")
    result = compare(f"{name}@2026-11-23", f"{name}@2026-11-24", CompareConfig())
    assert result.verdict is Verdict.PASS
    assert "relative to pytorch-eager" not in comparison_text(result)
    assert " after 15 rounds: latency decided; about" in comparison_text(result)
    elsewhere = replace_times(benchmark(cpu="Other", seed=3), 2.0)
    (tmp_path / "elsewhere.json").write_text(json.dumps(jsonable(elsewhere)))
    two_machines = compare(f"{name}@2026-11-23", str(tmp_path / "elsewhere.json"), CompareConfig())
    assert two_machines.verdict is Verdict.INCONCLUSIVE  # although it is twice as slow
    with pytest.raises(DocumentError, match="has no result of 2025"):
        compare(f"{name}@2025", name, CompareConfig())
    with pytest.raises(DocumentError, match="more than once"):
        compare(name, name, CompareConfig())
    with pytest.raises(DocumentError, match="not of the same kind"):
        compare(name, str(tiny_bundle.path), CompareConfig())
    with pytest.raises(DocumentError, match="--data applies to bundles"):
        compare(name, name, CompareConfig(data=tmp_path))
    (tmp_path / "other.json").write_text('{"schema": "resdeploy.verification/1"}')
    with pytest.raises(DocumentError, match=r"not resdeploy\.benchmark/1"):
        compare(name, str(tmp_path / "other.json"), CompareConfig())
