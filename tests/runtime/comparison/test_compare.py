"""Tests of the comparison of two bundles and of two files of benchmarks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import CALIBRATION, Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, Encoding, FileRecord, write_manifest
from resdeploy.errors import BundleError, DocumentError
from resdeploy.filesystem import sha256
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.json_documents import jsonable, parse
from resdeploy.report.comparison import comparison_text
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.comparison import Comparison
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Engine
from resdeploy.runtime.comparison.accuracy import judge_drop
from resdeploy.runtime.comparison.compare import CompareConfig, compare, compare_bundles
from resdeploy.statistics import PairedAccuracy, Verdict
from tests.results import benchmark
from tests.samples import CLASSES

UNTIMED = CompareConfig(seconds=0)
IMAGES = 5000


def copy_bundle(
    bundle: Bundle, folder: Path, change: Callable[[Any], None] | None = None
) -> Bundle:
    """Copy a bundle; `change` may modify the content of its calibration.json."""
    shutil.copytree(bundle.path, folder)
    manifest = bundle.manifest
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
    """A backend that reads the class from the red value, and errs at one green value."""

    name = "oracle"

    def __init__(self, wrong_at: int | None) -> None:
        self._wrong_at = wrong_at

    def run(self, images: UInt8Array) -> Float32Array:
        classes = images[:, 0, 0, 0] // 60
        if self._wrong_at is not None:
            classes = (classes + (images[:, 0, 0, 1] == self._wrong_at)) % len(CLASSES)
        return np.eye(len(CLASSES), dtype=np.float32)[classes]

    def close(self) -> None:
        pass


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_artifact(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> Oracle:
        return Oracle(250 if "worse" in bundle.path.name else None)

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
    for index in range(IMAGES):
        label = index % len(CLASSES)
        colour = (60 * label + 10, 250 if index % 200 == 0 else 0, 0)
        path = tmp_path / "data" / CLASSES[label] / f"{index:04d}.bmp"
        Image.new("RGB", (32, 32), colour).save(path)
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
    assert result.verdict is Verdict.PASS
    assert {line.different for line in result.accuracy} == {0}
    assert len(result.accuracy) >= 3
    assert not result.latency
    assert not result.layers
    assert not result.missing


def test_few_images_are_inconclusive_if_logits_differ(
    tiny_bundle: Bundle, tmp_path: Path, oracles: None
) -> None:
    worse = copy_bundle(tiny_bundle, tmp_path / "worse.bundle")
    pixels = tmp_path / "data" / "red"
    pixels.mkdir(parents=True)
    Image.new("RGB", (32, 32), (130, 250, 0)).save(pixels / "0.bmp")
    Image.new("RGB", (32, 32), (130, 0, 0)).save(pixels / "1.bmp")
    config = dataclasses.replace(UNTIMED, data=tmp_path / "data")
    result = compare_bundles(tiny_bundle, worse, config)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "verdict: inconclusive" in comparison_text(result)


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
    assert "2 layers to INT8 (layer1.0.conv1, layer1.0.conv2)" in comparison_text(reverse)


def test_a_missing_artifact_fails(tiny_bundle: Bundle) -> None:
    artifacts = tiny_bundle.manifest.artifacts[:2]
    fewer = dataclasses.replace(tiny_bundle.manifest, artifacts=artifacts)
    result = compare_bundles(tiny_bundle, Bundle(tiny_bundle.path, fewer), UNTIMED)
    assert result.verdict is Verdict.FAIL
    assert result.missing == ("int8", "int8-cpu")
    assert "only the first has int8-cpu" in comparison_text(result)


def test_golden_images_need_the_same_size(tiny_bundle: Bundle) -> None:
    preprocessing = dataclasses.replace(
        tiny_bundle.manifest.preprocessing, image_size=64, resize=64
    )
    larger = dataclasses.replace(tiny_bundle.manifest, preprocessing=preprocessing)
    with pytest.raises(BundleError, match="are 32 and 64 pixels"):
        compare_bundles(tiny_bundle, Bundle(tiny_bundle.path, larger), UNTIMED)


def test_times_both_bundles(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from resdeploy.runtime.comparison import latency

    monkeypatch.setattr(latency, "INTERIM_STARTS", (8,))
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.0)
    # A call takes less than a millisecond. A busy machine may make it ten times as long, but not
    # a thousand times.
    config = CompareConfig(precision="int8", threads=1, max_slowdown=100_000)
    result = compare(str(tiny_bundle.path), str(tiny_bundle.path), config)
    (line,) = result.latency  # without the graph for TensorRT
    assert (line.graph, line.samples, line.threads) == ("int8-cpu", 8, 1)
    assert line.slowdown_low <= line.slowdown <= line.slowdown_high
    assert result.verdict is Verdict.PASS
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
