"""Tests of a short real benchmark; the times themselves are not checked."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resdeploy.benchmark_process.workload import BenchmarkMode, Workload
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import Encoding, ExportWarning, FileRecord, write_manifest
from resdeploy.cli.bench import benchmark_text, slow_int8_lines
from resdeploy.errors import BackendError
from resdeploy.filesystem import sha256
from resdeploy.machine.conditions import load_average
from resdeploy.machine.cpu import Cpu, read_cpu
from resdeploy.machine.host import Host
from resdeploy.result_files.benchmark import BaselineFacts, Benchmark, Timing
from resdeploy.runtime.bench import contenders
from resdeploy.runtime.bench.benchmark import (
    BenchmarkConfig,
    load_notice,
    run_benchmark,
    wide_intervals,
)
from resdeploy.runtime.bench.contenders import (
    ContenderSpec,
    backend_contenders,
    list_contenders,
    pytorch_contenders,
)
from resdeploy.runtime.bench.runs import START_SECONDS
from resdeploy.train.bench.pytorch_worker import PyTorchMode, prepare_pytorch
from tests.runtime.bench.test_benchmark_energy import QUICK, use_few_short_rounds
from tests.samples import make_classifier


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_short_rounds(monkeypatch)


@pytest.fixture(scope="module")
def result(tiny_bundle: Bundle, tiny_checkpoint: Path) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        use_few_short_rounds(patch, runs_per_contender=2)
        config = BenchmarkConfig(
            batch=2,
            threads=1,
            seconds=0.1,
            also=("openvino",),
            without=("pytorch-compile",),
            checkpoint=tiny_checkpoint,
        )
        return run_benchmark(tiny_bundle, config)


def workload(path: Path, batch: int = 1) -> Workload:
    return Workload(bundle=path, batch=batch, threads=1)


def test_one_contender_per_precision_and_backend(tiny_bundle: Bundle) -> None:
    specs = backend_contenders(tiny_bundle, workload(tiny_bundle.path))
    assert [(spec.precision, spec.encoding.value) for spec in specs] == [
        ("fp32", "float"), ("fp16", "float"), ("int8", "cpu"),
    ]  # fmt: skip
    assert [spec.file_bytes for spec in specs] == [
        tiny_bundle.artifact(name).bytes for name in ("fp32", "fp16", "int8-cpu")
    ]


def test_also_and_without_change_the_contenders(tiny_bundle: Bundle) -> None:
    here = workload(tiny_bundle.path)
    names = [
        spec.name
        for spec in list_contenders(
            tiny_bundle, here, checkpoint=None, also=["openvino"], without=["onnxruntime-cpu"]
        )
    ]
    assert names == [
        "pytorch-eager", "pytorch-compile", "pytorch-autocast", "openvino", "openvino",
    ]  # fmt: skip
    with pytest.raises(BackendError, match="no contender 'pytorch'") as caught:
        list_contenders(tiny_bundle, here, checkpoint=None, also=[], without=["pytorch"])
    assert "pytorch-eager" in str(caught.value.hint)


@pytest.mark.slow
def test_the_result_has_pytorch_every_precision_and_the_additional_backend(
    result: Benchmark,
) -> None:
    lines = [(line.contender, line.precision) for line in result.results]
    assert lines[0] == ("pytorch-eager", "fp32")
    assert (("pytorch-autocast", "bf16") in lines) == read_cpu().has_fast_bf16
    assert lines[-5:] == [
        ("onnxruntime-cpu", "fp32"), ("onnxruntime-cpu", "fp16"), ("onnxruntime-cpu", "int8"),
        ("openvino", "fp32"), ("openvino", "int8"),
    ]  # fmt: skip
    assert result.results[0].speedup == 1.0


def test_the_share_of_the_limit_follows_from_the_ceilings(result: Benchmark) -> None:
    assert result.work is not None
    assert result.ceilings is not None
    assert {"fp32", "int8"} <= result.ceilings.operations_per_second.keys()
    integers = next(line for line in result.results if line.precision == "int8")
    compute = 2 * 2 * result.work.macs / result.ceilings.operations_per_second["int8"]
    moved = result.work.weights + 2 * result.work.activations
    assert result.ceilings.bytes_per_second is not None
    memory = moved / result.ceilings.bytes_per_second
    seconds = np.median(integers.round_ms) / 1000
    assert integers.limit_share == pytest.approx(max(compute, memory) / seconds)
    assert integers.bound == ("compute" if compute >= memory else "memory")


def test_each_contender_reports_its_process(result: Benchmark) -> None:
    for line in result.results:
        assert line.cold_start_s is not None
        assert 0 < line.cold_start_s < START_SECONDS  # slower contenders are left out
        assert line.peak_rss_bytes is not None
        assert line.peak_rss_bytes > 10e6  # Python and numpy alone need more
        assert line.peak_gpu_bytes is None
        assert line.file_bytes is not None
        assert line.stages_ms is None


@pytest.mark.parametrize(("speedup", "told"), [(1.49, True), (1.5, False)])
def test_a_bench_names_the_command_that_explains_a_slow_int8_graph(
    speedup: float, told: bool
) -> None:
    fp32 = Timing(
        contender="onnxruntime-cpu", precision="fp32", encoding=Encoding.FLOAT, batch=1, threads=2,
        calls=9, p50_ms=2.0, p90_ms=2.0, p99_ms=2.0, images_per_second=500.0, speedup=2.0,
        speedup_low=1.9, speedup_high=2.1, energy=None, round_ms=(2.0,),
        quantiles_ms=(), stages_ms=None, cold_start_s=None, peak_rss_bytes=None,
        peak_gpu_bytes=None, file_bytes=None, limit_share=None, bound=None,
    )  # fmt: skip
    int8 = dataclasses.replace(fp32, precision="int8", encoding=Encoding.CPU, speedup=2.0 * speedup)
    line = "why int8-cpu is only 1.49x as fast as fp32: resdeploy explain --slow 'a b'"
    half = dataclasses.replace(fp32, precision="fp16", speedup=9.0)
    assert slow_int8_lines((fp32, half, int8), Path("a b")) == ([line] if told else [])
    other = dataclasses.replace(fp32, contender="openvino")
    assert slow_int8_lines((other, int8), Path("a b")) == []  # it does not compare engines


def test_end_to_end_starts_from_files_and_reports_its_stages(tiny_bundle: Bundle) -> None:
    config = dataclasses.replace(QUICK, mode=BenchmarkMode.END_TO_END)
    result = run_benchmark(tiny_bundle, config)
    for line in result.results:
        assert line.stages_ms is not None
        assert list(line.stages_ms) == ["decode", "resize", "copy", "inference", "post"]
        # A call is longer than each of its stages, and so are the medians. On a busy machine, the
        # medians of the stages need not add up to that of the call.
        assert max(line.stages_ms.values()) <= statistics.median(line.round_ms)
    text = benchmark_text(result)
    assert "end-to-end" in text
    assert "pytorch-eager fp32: decode " in text


def test_offline_uses_batches(tiny_bundle: Bundle) -> None:
    config = dataclasses.replace(QUICK, mode=BenchmarkMode.OFFLINE)
    about = [(), ("int8-cpu",), ("int8",)]  # no contender has the last one on a CPU
    doubts = tuple(ExportWarning(message=str(names), hint="", artifacts=names) for names in about)
    doubtful = dataclasses.replace(tiny_bundle.manifest, warnings=doubts)
    result = run_benchmark(Bundle(tiny_bundle.path, doubtful), config)
    assert {line.batch for line in result.results} == {8}
    assert result.warnings == doubts[:2]


def test_a_backend_with_different_outputs_is_left_out(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "wrong.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    golden = tiny_bundle.golden()
    spoilt = dataclasses.replace(golden, logits=-golden.logits, bit_exact={}).to_bytes()
    (folder / "golden.npz").write_bytes(spoilt)
    record = FileRecord(bytes=len(spoilt), sha256=sha256(spoilt))
    files = {**tiny_bundle.manifest.files, "golden.npz": record}
    write_manifest(folder, dataclasses.replace(tiny_bundle.manifest, files=files))
    with caplog.at_level(logging.WARNING, "resdeploy"):
        result = run_benchmark(open_bundle(folder), QUICK)
    assert [line.contender for line in result.results] == ["pytorch-eager"]
    assert "the outputs of onnxruntime-cpu with int8-cpu differ from PyTorch's" in caplog.text


def test_the_figures_of_a_contender_are_consistent(result: Benchmark) -> None:
    for line in result.results:
        assert (line.batch, line.threads) == (2, 1)
        assert line.calls >= 12  # four rounds of at least three
        assert len(line.round_ms) == 4
        assert len(line.quantiles_ms) == 101
        assert line.quantiles_ms[50] == line.p50_ms
        assert 0 < line.p50_ms <= line.p90_ms <= line.p99_ms
        assert line.images_per_second > 0
        assert line.speedup is not None
        assert line.speedup_low is not None
        assert line.speedup_high is not None
        assert line.speedup_low <= line.speedup <= line.speedup_high


def test_the_environment_describes_network_machine_and_baseline(
    result: Benchmark, tiny_checkpoint: Path
) -> None:
    environment = result.environment
    assert environment.model == "resnet10"
    assert environment.image_size == 32
    assert environment.device.cores
    assert environment.versions["torch"]
    assert environment.baseline == BaselineFacts(weights=tiny_checkpoint.name, device="cpu")
    assert (environment.mode, environment.rounds) == ("stream", 4)


def test_the_table_has_a_row_per_contender(result: Benchmark) -> None:
    text = benchmark_text(result)
    above = any(line.limit_share and line.limit_share > 1 for line in result.results)
    assert len(text.splitlines()) == 2 + len(result.results) + 4 + above + len(result.notices)
    assert "\na speed-up is not the ratio of two of these times: " in text
    assert "\np50 and p99: median and 99th percentile of the time of a call; " in text
    assert "measured limits of this machine: " in text
    assert "1.00x" in text


def test_a_share_above_the_limit_is_explained(result: Benchmark) -> None:
    *others, last = result.results
    for share in (1.0, 1.01):
        changed = [*(dataclasses.replace(line, limit_share=0.5) for line in others)]
        changed.append(dataclasses.replace(last, limit_share=share))
        text = benchmark_text(dataclasses.replace(result, results=tuple(changed)))
        assert ("\na share above 100 %: the limit counts" in text) == (share > 1)


def test_a_notice_names_the_load_before_the_benchmark(tmp_path: Path) -> None:
    assert load_average(Host(root=tmp_path)) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "loadavg").write_text("16.25 9.00 3.00 2/300 1234\n")
    load = load_average(Host(root=tmp_path))
    assert load == 16.25
    (notice,) = load_notice(load, 2)
    assert notice.startswith("the load average was 16.2 on 2 cores in the minute before the ")
    assert load_notice(0.9, 2) == load_notice(None, 2) == []


def test_a_notice_names_every_wide_interval(result: Benchmark) -> None:
    widths = dict.fromkeys((0.02, 0.42, 0.46))
    timings = [
        dataclasses.replace(
            result.results[-1], contender=f"c{width}", speedup=10.0, speedup_low=10.0,
            speedup_high=10 + 10 * width,
        )
        for width in widths
    ]  # fmt: skip
    (notice,) = wide_intervals(timings, 0.05)
    assert (
        "wider than 5 % of the speed-up: c0.42 int8-cpu (10.0 to 14.2), c0.46 int8-cpu (" in notice
    )
    assert wide_intervals(timings, 0.5) == []


def test_the_text_names_contenders_with_streams(result: Benchmark) -> None:
    *others, last = result.results
    last = dataclasses.replace(last, streams=2, batch=2, threads=4)
    text = benchmark_text(dataclasses.replace(result, results=(*others, last)))
    assert text.count("fastest way") == 1
    assert (
        f"{last.contender} int8-cpu: the fastest way is 2 streams with 1 image and 2 threads each"
        in text
    )


def test_the_baseline_has_random_weights_without_the_checkpoint(tiny_bundle: Bundle) -> None:
    manifest = dataclasses.replace(
        tiny_bundle.manifest, model={**tiny_bundle.manifest.model, "source": "/gone.pth"}
    )
    folder = Path("moved.bundle")
    folder.mkdir()
    (folder / "golden.npz").write_bytes((tiny_bundle.path / "golden.npz").read_bytes())
    write_manifest(folder, manifest)
    run, facts = prepare_pytorch(workload(folder, 40), PyTorchMode.EAGER, "")
    assert (facts["weights"], facts["file_bytes"]) == ("random", None)
    assert facts["notice"] == (
        "PyTorch has random weights, which take as long as the bundle's: "
        "there is no checkpoint at gone.pth"
    )
    logits = run()
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (40, 3)  # golden images repeat in a larger batch


def test_a_changed_checkpoint_is_not_the_baseline(tiny_bundle: Bundle, tmp_path: Path) -> None:
    retrained = tmp_path / "retrained.pth"
    torch.save(make_classifier(seed=1).network.state_dict(), retrained)
    manifest = dataclasses.replace(
        tiny_bundle.manifest, model={**tiny_bundle.manifest.model, "source": str(retrained)}
    )
    folder = tmp_path / "x.bundle"
    folder.mkdir()
    (folder / "golden.npz").write_bytes((tiny_bundle.path / "golden.npz").read_bytes())
    write_manifest(folder, manifest)
    for given, weights in (("", "random"), (str(retrained), "retrained.pth")):
        assert prepare_pytorch(workload(folder), PyTorchMode.EAGER, given)[1]["weights"] == weights


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [
        # The same weights and kernels, another batch: sums in another order.
        (PyTorchMode.EAGER, 1e-5),
        # bfloat16 keeps 8 bits, and each of the dozen layers rounds.
        pytest.param(
            PyTorchMode.AUTOCAST,
            2e-2,
            marks=pytest.mark.skipif(not read_cpu().has_fast_bf16, reason="no bfloat16 here"),
        ),
    ],
)
def test_pytorch_gives_the_golden_logits(
    tiny_bundle: Bundle, tiny_checkpoint: Path, mode: PyTorchMode, tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tiny_checkpoint.parent)  # where the weights are found by their name
    golden = tiny_bundle.golden()
    run, _ = prepare_pytorch(workload(tiny_bundle.path, 24), mode, "")
    logits = run()
    assert isinstance(logits, np.ndarray)
    scale = np.abs(golden.logits).max()
    np.testing.assert_allclose(logits, golden.logits, rtol=0, atol=tolerance * scale)


def test_reports_why_a_network_does_not_compile(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*arguments: object, **options: object) -> object:
        def fails(images: object) -> None:
            raise RuntimeError("no C++ compiler\nfound in PATH")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    for compiler, hint in ((None, "install a C++ compiler"), ("/usr/bin/g++", "leave it out")):
        monkeypatch.setattr(shutil, "which", lambda name, found=compiler: found)
        with pytest.raises(
            BackendError, match=r"(?m)failed on this machine: no C\+\+ compiler$"
        ) as caught:
            prepare_pytorch(workload(tiny_bundle.path), PyTorchMode.COMPILE, "")
        assert hint in str(caught.value.hint)


def test_autocast_needs_bfloat16(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Cpu(architecture="x86_64", model=None, features=frozenset({"avx2"}))
    monkeypatch.setattr("resdeploy.train.bench.pytorch_worker.read_cpu", lambda: old)
    with pytest.raises(BackendError, match="needs bfloat16"):
        prepare_pytorch(workload(tiny_bundle.path), PyTorchMode.AUTOCAST, "")


def test_rejects_a_checkpoint_of_another_network(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = dataclasses.replace(make_classifier().network.architecture, classes=5)
    torch.save(make_classifier(other).network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(BackendError, match="with 5 classes, but the bundle holds"):
        run_benchmark(tiny_bundle, dataclasses.replace(QUICK, checkpoint=tmp_path / "other.pth"))


def broken_pytorch(*arguments: Any) -> list[ContenderSpec]:
    """Return only the baseline, with a bundle that does not exist."""
    baseline, *_ = pytorch_contenders(*arguments)
    nowhere = (*baseline.arguments[:2], *workload(Path("nowhere")).to_arguments())
    return [dataclasses.replace(baseline, arguments=nowhere)]


def test_without_pytorch_there_are_no_speed_ups(
    tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "pytorch_contenders", broken_pytorch)
    with caplog.at_level(logging.WARNING, "resdeploy"):
        result = run_benchmark(tiny_bundle, QUICK)
    assert "pytorch-eager fp32 is not measured" in caplog.text
    assert all(line.speedup is None for line in result.results)
    assert "-" in benchmark_text(result)
    assert result.environment.baseline is None


def test_raises_if_no_contender_can_start(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "backend_contenders", lambda *arguments: [])
    monkeypatch.setattr(contenders, "pytorch_contenders", broken_pytorch)
    with pytest.raises(BackendError, match="no contender could start"):
        run_benchmark(tiny_bundle, QUICK)
