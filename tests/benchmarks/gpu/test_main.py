"""Tests of `python -m benchmarks.gpu` with a fake GPU and fake child processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import contenders as gpu_contenders
from benchmarks.gpu import engine_worker, pytorch_worker
from benchmarks.gpu.contenders import GpuContender, Notes, time_in_turns
from benchmarks.gpu.report import RULES
from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, CalibrationError
from resdeploy.json_documents import jsonable
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import CudaDevice
from resdeploy.runtime.backends.tensorrt import tensorrt_or_rtx
from resdeploy.runtime.bench import rounds
from tests.fakes import GoldenBackend

CPU = "onnxruntime-cpu"  # stands for a GPU backend, because it runs everywhere
A_GPU = CudaDevice(
    name="a GPU", compute_capability="9.0", multiprocessors=1, integrated=False,
    driver_cuda="13.0",
)  # fmt: skip
CEILINGS = Ceilings(operations_per_second={"tf32": 1e12}, bytes_per_second=1e12)
BUILD_FACTS = {
    "flavour": "tensorrt", "artifact": "int8", "batch": 1, "cached": False, "seconds": 1.0,
    "bytes": 1, "convs": None, "int8_convs": None, "int8_convs_expected": 12,
}  # fmt: skip


class FakeContender:
    """A child process whose calls take 1 ms; class attributes make it fail."""

    started: list[FakeContender]
    not_starting: str
    """Part of the label of contenders that do not start."""
    ending_early: str
    """Part of the label of contenders that end when they should run."""

    def __init__(self, name: str, module: str, arguments: list[str]) -> None:
        self.name = name
        self.module = module
        self.arguments = arguments
        self.facts: dict[str, Any] = {"cuda_graphs": "no", "answers": None}
        if arguments[:1] == ["build"]:
            self.facts = {**BUILD_FACTS, "artifact": arguments[3], "batch": int(arguments[4])}
        self.ended = False
        self.stopped = False
        self.process = SimpleNamespace(poll=lambda: 1 if self.ended else None)

    @classmethod
    def start(cls, name: str, module: str, arguments: list[str], threads: int) -> FakeContender:
        if cls.not_starting and cls.not_starting in name:
            raise BackendError("the process\nfailed", "try again")
        cls.started.append(cls(name, module, arguments))
        return cls.started[-1]

    def run_for(self, seconds: float) -> np.ndarray:
        if self.ending_early and self.ending_early in self.name:
            self.ended = True
            raise BackendError(f"the benchmark of {self.name} ended early", "see above")
        return np.array([1.0, 1.0, 2.0])

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeContender]]:
    FakeContender.started, FakeContender.not_starting, FakeContender.ending_early = [], "", ""
    monkeypatch.setattr(gpu_contenders, "Contender", FakeContender)
    yield FakeContender
    assert all(child.stopped for child in FakeContender.started)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the machine by one whose GPU runs PyTorch and one backend, without TensorRT."""
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "restored after the test")
    monkeypatch.setattr(gpu, "check_gpu_availability", lambda: None)
    monkeypatch.setattr(gpu, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(gpu, "CudaRuntime", lambda: SimpleNamespace(gpu=lambda: A_GPU))
    monkeypatch.setattr(pytorch_worker, "check_pytorch", lambda device: None)
    monkeypatch.setattr(gpu_contenders, "BACKENDS", (CPU, "tensorrt"))
    monkeypatch.setattr(
        tensorrt_or_rtx,
        "check_availability",
        lambda kind: Unavailability(f"{kind.value} is not installed", ""),
    )
    monkeypatch.setattr(rounds, "MIN_ROUNDS", 3)


def measure(bundle: Bundle, checkpoint: str, *options: str) -> Result:
    arguments = [checkpoint, "--bundle", str(bundle.path), "--output", "out/gpu.json", *options]
    return CliRunner().invoke(gpu.main, arguments)


def test_fails_without_a_gpu(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu, "check_gpu_availability", lambda: Unavailability("no GPU is visible", "look for it")
    )
    result = measure(tiny_bundle, "random")
    assert result.exit_code == 1
    assert result.output == "Error: no GPU can be used: no GPU is visible; look for it\n"
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("with_gpu")
def test_writes_results_and_missing_figures(
    tiny_bundle: Bundle, tiny_checkpoint: Path, children: type[FakeContender]
) -> None:
    children.not_starting = "eager fp16 at batch 2"
    result = measure(tiny_bundle, str(tiny_checkpoint), "--batch", "1", "--batch", "2")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("out/gpu.json").read_text())
    assert [(row["contender"], row["precision"], row["batch"]) for row in written["rows"]] == [
        (CPU, "fp32", 1), (CPU, "fp16", 1), (CPU, "int8", 1),
        ("pytorch-eager", "fp32", 1), ("pytorch-eager", "fp16", 1), ("pytorch-compile", "fp16", 1),
        (CPU, "fp32", 2), (CPU, "fp16", 2), (CPU, "int8", 2),
        ("pytorch-eager", "fp32", 2), ("pytorch-compile", "fp16", 2),
    ]  # fmt: skip
    assert written["missing"] == [
        {"what": "labelled images", "why": "no --data"},
        {"what": "tensorrt", "why": "tensorrt is not installed"},
        {"what": "tensorrt-rtx", "why": "tensorrt-rtx is not installed"},
        {"what": "pytorch-eager fp16 at batch 2", "why": "the process failed"},
    ]
    assert "left out: tensorrt: tensorrt is not installed\n" in result.output
    assert "batch 1\n" in result.output
    assert "all times include the transfers" in result.output
    assert written["gpu"]["name"] == "a GPU"
    assert written["network"]["name"] == "resnet10"
    assert written["network"]["work_of_one_image"]["macs"] > 0
    assert written["rules"] == RULES
    assert written["ceilings"] == jsonable(CEILINGS)
    assert written["rows"][1]["to_eager_fp32"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert written["rows"][0]["facts"] == {"cuda_graphs": "no", "answers": None}
    assert written["rows"][0]["roofline_share"] > 0
    assert written["rows"][2]["roofline_share"] is None
    assert not written["settings"]["cache_kept"]


@pytest.mark.usefixtures("with_gpu", "children")
def test_an_interrupted_file_lists_the_missing_batches(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(specs: Any, batch: int, *rest: Any) -> Any:
        if batch == 2:
            raise KeyboardInterrupt
        return time_in_turns(specs, batch, *rest)

    monkeypatch.setattr(gpu, "time_in_turns", interrupted)
    assert measure(tiny_bundle, "random", "--batch", "1", "--batch", "2").exit_code == 1
    written = json.loads(Path("out/gpu.json").read_text())
    assert {row["batch"] for row in written["rows"]} == {1}
    assert written["missing"][-1] == {"what": "batch 2", "why": "the script ended before it"}


@pytest.mark.usefixtures("with_gpu")
def test_without_leaves_contenders_out_and_reports_them(
    tiny_bundle: Bundle, children: type[FakeContender]
) -> None:
    options = ("--batch", "1", "--without", "pytorch-compile", "--without", "tensorrt", "--bf16")
    assert measure(tiny_bundle, "random", *options).exit_code == 0
    written = json.loads(Path("out/gpu.json").read_text())
    assert [row["precision"] for row in written["rows"]] == ["fp32", "fp16", "int8", "fp32",
                                                             "fp16", "bf16"]  # fmt: skip
    assert written["missing"][:2] == [
        {"what": "pytorch-compile", "why": "--without"}, {"what": "tensorrt", "why": "--without"},
    ]  # fmt: skip
    assert written["rows"][0]["to_compile_fp16"] is None


@pytest.mark.usefixtures("with_gpu")
def test_writes_nothing_if_no_contender_starts(
    tiny_bundle: Bundle, children: type[FakeContender]
) -> None:
    children.not_starting = "at batch"
    result = measure(tiny_bundle, "random", "--batch", "1")
    assert result.exit_code == 1
    assert "no contender could be timed" in result.output
    assert not Path("out").exists()


@pytest.mark.usefixtures("with_gpu")
def test_an_unusable_checkpoint_is_a_one_line_error(children: type[FakeContender]) -> None:
    result = CliRunner().invoke(gpu.main, ["nowhere.pth"])
    assert result.exit_code == 1
    assert "Error: there is no checkpoint at nowhere.pth (" in result.output


@pytest.mark.usefixtures("with_gpu")
def test_builds_every_engine_for_each_batch_size(
    tiny_bundle: Bundle, children: type[FakeContender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_or_rtx, "check_availability", lambda kind: None)
    children.not_starting = "tensorrt-rtx fp32"
    notes = Notes()
    engines = gpu_contenders.build_engines(tiny_bundle, (1, 8), (), notes)
    assert [child.arguments[2:] for child in children.started] == [
        [kind, artifact, batch]
        for kind in ("tensorrt", "tensorrt-rtx")
        for artifact in ("int8", "fp16", "fp32")
        for batch in ("1", "8")
        if (kind, artifact) != ("tensorrt-rtx", "fp32")
    ]
    assert len(engines) == 10
    assert [entry.what for entry in notes.entries] == [
        "engine of tensorrt-rtx fp32 for batch 1", "engine of tensorrt-rtx fp32 for batch 8",
    ]  # fmt: skip


def test_leaves_out_a_contender_that_ends_early(
    children: type[FakeContender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "MIN_ROUNDS", 3)
    children.ending_early = "weak"
    specs = [
        GpuContender(name=name, precision="fp16", module="none", arguments=())
        for name in ("strong", "weak", "steady")
    ]
    notes = Notes()
    timed = time_in_turns(specs, 4, 0.1, notes)
    assert [contender.name for contender in timed] == ["strong", "steady"]
    assert all(len(contender.rounds) == 3 for contender in timed)
    (missing,) = notes.entries
    assert missing.what == "weak fp16 at batch 4"
    assert "ended early" in missing.why
    children.ending_early = "s"
    assert time_in_turns([specs[0], specs[2]], 4, 0.1, notes) == []


def test_a_note_is_kept_once(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes()
    notes.add("tensorrt", "not\n there")
    notes.add("tensorrt", "not there")
    assert len(notes.entries) == 1
    assert capsys.readouterr().err == "left out: tensorrt: not there\n"


@pytest.mark.parametrize("with_data", [True, False])
def test_int8_needs_calibration_images(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_data: bool
) -> None:
    calls: list[tuple[Path | None, bool]] = []

    def export(
        source: Path, folder: Path, size: int | None, images: Path | None, *, int8: bool
    ) -> Bundle:
        calls.append((images, int8))
        if int8 and images is None:
            raise CalibrationError("no images are known", "name some")
        return tiny_bundle

    monkeypatch.setattr(gpu, "_export", export)
    data = tmp_path if with_data else None
    notes = Notes()
    opened, weights = gpu._open_or_export("weights.pth", None, data, None, tmp_path, notes)
    assert opened is tiny_bundle
    assert Path(weights).is_absolute()
    assert calls == [(None, True), (tmp_path, True) if with_data else (None, False)]
    assert [entry.what for entry in notes.entries] == ([] if with_data else ["int8"])


def test_the_backend_worker_reports_its_check(tiny_bundle: Bundle) -> None:
    run, facts = engine_worker.prepare(str(tiny_bundle.path), CPU, "int8-cpu", 3, "")
    assert facts["artifact"] == "int8-cpu"
    assert facts["cuda_graphs"] == "no"
    assert facts["answers"]["golden"]["passed"] is True
    logits = run()
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (3, 3)


def test_reports_if_cuda_graphs_are_replayed(tiny_bundle: Bundle) -> None:
    class Capturing(GoldenBackend):
        name = "tensorrt"
        captured = frozenset({8})

    backend = Capturing(tiny_bundle.golden())
    assert engine_worker.cuda_graphs(backend, 8) == "yes"
    assert engine_worker.cuda_graphs(backend, 1) == "no"
    backend.name = "tensorrt-rtx"
    assert engine_worker.cuda_graphs(backend, 8) == "its own"


def test_the_build_worker_builds_for_one_batch_size(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(bundle: Bundle, artifact: Any, kind: Any, options: Any) -> dict[str, Any]:
        return {"engine": "somewhere", "batches": str(options.batches), "flavour": kind.value}

    monkeypatch.setattr(engine_worker, "build", build)
    _, facts = engine_worker.build_for_batch(str(tiny_bundle.path), "tensorrt", "int8", 8)
    assert facts == {"batches": "8,8,8", "flavour": "tensorrt", "batch": 8}
