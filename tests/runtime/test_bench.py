"""The benchmark's plan and arithmetic, and one short real run. Times themselves are not judged."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from resdeploy.bundle import Bundle, write_manifest
from resdeploy.errors import BackendError
from resdeploy.render_benchmark import benchmark_text
from resdeploy.runtime import bench
from resdeploy.runtime.bench import (
    Benchmark,
    backend_entries,
    baseline_entry,
    run_benchmark,
)
from resdeploy.train.contender import prepare
from tests.samples import make_classifier


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 3)
    monkeypatch.setattr(bench, "WARM_UP_SECONDS", 0.01)


@pytest.fixture(scope="module")
def result(tiny_bundle: Bundle) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ROUNDS", 3)
        patch.setattr(bench, "WARM_UP_SECONDS", 0.01)
        return run_benchmark(tiny_bundle, batch=2, threads=1, seconds=0.1)


def test_one_entry_per_precision_and_backend(tiny_bundle: Bundle) -> None:
    entries = backend_entries(tiny_bundle, batch=1, threads=1)
    assert [(e.precision.value, e.encoding.value) for e in entries] == [
        ("fp32", "float"), ("fp16", "float"), ("int8", "cpu"),
    ]  # fmt: skip


def test_contenders_are_pytorch_and_every_precision(result: Benchmark) -> None:
    assert [line.contender for line in result.results] == [
        "pytorch-eager", "onnxruntime-cpu", "onnxruntime-cpu", "onnxruntime-cpu",
    ]  # fmt: skip
    assert result.results[0].speedup == 1.0


def test_figures_belong_together(result: Benchmark) -> None:
    for line in result.results:
        assert (line.batch, line.threads) == (2, 1)
        assert line.runs >= 9  # three rounds of at least three
        assert 0 < line.p50_ms <= line.p90_ms <= line.p99_ms
        assert line.images_per_second > 0
        assert line.speedup is not None
        assert line.speedup_low is not None
        assert line.speedup_high is not None
        assert line.speedup_low <= line.speedup <= line.speedup_high


def test_the_environment_says_what_was_measured_and_where(
    result: Benchmark, tiny_checkpoint: Path
) -> None:
    environment = result.environment
    assert environment["model"] == "resnet10"
    assert environment["image_size"] == 32
    assert environment["device"]["cores"] >= 1
    assert environment["versions"]["torch"]
    assert environment["baseline"] == {"weights": str(tiny_checkpoint)}


def test_the_table_has_a_row_per_contender(result: Benchmark) -> None:
    text = benchmark_text(result)
    assert len(text.splitlines()) == 2 + len(result.results) + 1
    assert "1.00x" in text


def test_without_its_weights_the_baseline_has_random_ones(tiny_bundle: Bundle) -> None:
    manifest = dataclasses.replace(
        tiny_bundle.manifest, model={**tiny_bundle.manifest.model, "source": "/gone.pth"}
    )
    folder = Path("moved.bundle")
    folder.mkdir()
    (folder / "golden.npz").write_bytes((tiny_bundle.path / "golden.npz").read_bytes())
    write_manifest(folder, manifest)
    run, facts = prepare(str(folder), "", batch=40, threads=1)
    assert facts == {"weights": "random"}
    logits = run()
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (40, 3)  # more than there are golden images: they repeat


def test_other_weights_under_the_same_name_are_no_baseline(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    retrained = tmp_path / "retrained.pth"
    torch.save(make_classifier(seed=1).network.state_dict(), retrained)
    manifest = dataclasses.replace(
        tiny_bundle.manifest, model={**tiny_bundle.manifest.model, "source": str(retrained)}
    )
    folder = tmp_path / "x.bundle"
    folder.mkdir()
    (folder / "golden.npz").write_bytes((tiny_bundle.path / "golden.npz").read_bytes())
    write_manifest(folder, manifest)
    assert prepare(str(folder), "", batch=1, threads=1)[1] == {"weights": "random"}
    assert prepare(str(folder), str(retrained), batch=1, threads=1)[1] == {
        "weights": str(retrained)
    }


def test_the_baseline_gives_the_golden_logits(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    run, _ = prepare(str(tiny_bundle.path), "", batch=24, threads=1)
    logits = run()
    assert isinstance(logits, torch.Tensor)
    # The same weights and kernels, another batch: sums in another order.
    scale = np.abs(golden.logits).max()
    np.testing.assert_allclose(logits.numpy(), golden.logits, rtol=0, atol=1e-5 * scale)


def test_another_networks_weights_are_no_baseline(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = dataclasses.replace(make_classifier().network.architecture, classes=5)
    torch.save(make_classifier(other).network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(BackendError, match="of 5 classes, the bundle holds"):
        run_benchmark(tiny_bundle, checkpoint=tmp_path / "other.pth", threads=1, seconds=0.01)


def test_without_pytorch_there_are_no_speed_ups(
    tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench,
        "baseline_entry",
        lambda *arguments: dataclasses.replace(
            baseline_entry(*arguments), arguments=("", "", "1", "1")
        ),
    )
    with caplog.at_level(logging.WARNING, "resdeploy"):
        result = run_benchmark(tiny_bundle, threads=1, seconds=0.01)
    assert "pytorch-eager is left out" in caplog.text
    assert all(line.speedup is None for line in result.results)
    assert "-" in benchmark_text(result)
    assert result.environment["baseline"] is None


def test_no_contender_at_all_is_an_error(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "backend_entries", lambda *arguments: [])
    monkeypatch.setattr(
        bench,
        "baseline_entry",
        lambda *arguments: dataclasses.replace(
            baseline_entry(*arguments), arguments=("nowhere", "", "1", "1")
        ),
    )
    with pytest.raises(BackendError, match="not one contender"):
        run_benchmark(tiny_bundle, threads=1, seconds=0.01)
