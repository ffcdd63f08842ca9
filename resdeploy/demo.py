"""The pipeline that `resdeploy demo` runs, on handwritten digits that scikit-learn contains."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.filesystem import refuse_existing, refuse_existing_file, write_file
from resdeploy.pages.template import to_html
from resdeploy.progress import Progress, silent
from resdeploy.report.recommendation import OPENVINO
from resdeploy.report.report import ReportInputs, make_page
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.verification import Verification
from resdeploy.runtime import load
from resdeploy.runtime.backends.onnxruntime.profile import time_layers
from resdeploy.runtime.bench.benchmark import BenchmarkConfig, run_benchmark
from resdeploy.runtime.file_predictions import FilePredictions, classify_files
from resdeploy.runtime.picture_sources import PictureSource
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.run.folder import RUNS
from resdeploy.train.run.record import STATE_JSON
from resdeploy.train.trainer import train

logger = logging.getLogger(__name__)

# Small batches reach the target in fewer epochs; it leaves room for an accuracy of 97 % in INT8.
DEMO_TRAINING = TrainingConfig(epochs=6, batch_size=32, lr=0.1, target_accuracy=98.0)
# The table shows PyTorch eager only; compiling would take as long as the rest of the demo. Three
# runs of a second fit in the time limit; the intervals show how much they differ.
DEMO_BENCHMARK = BenchmarkConfig(
    seconds=1.0, time_limit=30.0, without=("pytorch-compile", "pytorch-autocast", "ceilings")
)
# In percentage points. On 450 images, the upper bound of the accuracy drop is 0.6 points if no
# prediction becomes wrong, and 2.0 points if four predictions do.
MAX_DROP = 2.0


def benchmark_of(verification: Verification) -> BenchmarkConfig:
    """Return the settings of a benchmark of all that was verified, so that the page names a file.

    By default, a benchmark leaves OpenVINO out.
    """
    is_verified = any(line.backend == OPENVINO for line in verification.results)
    return replace(DEMO_BENCHMARK, also=(OPENVINO,) if is_verified else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Results of the demo."""

    accuracy: float
    """Top-1 accuracy of PyTorch on the validation digits, in percent."""
    bundle: Path
    verdict: Verdict
    speedup: float | None
    """Speed-up of the fastest contender over PyTorch eager FP32 with the same threads."""
    report: Path
    """HTML page about all results; it is outside the bundle, because a bundle never changes."""
    seconds: float
    """Duration of the demo."""
    verification: Verification
    benchmark: Benchmark
    prediction: FilePredictions
    schema: str = "resdeploy.demo/1"


def run_demo(*, force: bool = False, progress: Progress = silent) -> DemoResult:
    """Train on digits, export all four graphs, verify, benchmark, classify a picture, and report.

    The outputs are `runs/demo`, `runs/demo.bundle` and `runs/demo.html` in the working folder.

    Raises:
        OutputError: An output exists, and `force` is not set.
        MissingDependencyError: A package of the extra `all` is missing.
    """
    start = time.perf_counter()
    run, output, page = RUNS / "demo", RUNS / "demo.bundle", RUNS / "demo.html"
    refuse_existing(run, force=force, marker=STATE_JSON)
    refuse_existing(output, force=force, marker=MANIFEST)
    refuse_existing_file(page, force=force)
    logger.info("1/5 train a ResNet-34 on handwritten digits")
    trained = train(DEMO_TRAINING, run, force=force, progress=progress)
    logger.info("2/5 export FP32, FP16, INT8 for TensorRT and INT8 for CPUs")
    config = ExportConfig(source=run, output=output, fp16=True, int8=True)
    export(config, force=force, progress=progress)
    bundle, digits = open_bundle(output), digits_folder()
    logger.info("3/5 verify on the validation digits")
    verification = verify(bundle, data=digits, max_drop=MAX_DROP, progress=progress)
    logger.info("4/5 benchmark against PyTorch")
    benchmark = run_benchmark(bundle, benchmark_of(verification), progress=progress)
    logger.info("5/5 classify a picture\n")
    picture = sorted((digits / "val" / "7").iterdir())[0]
    with load(output) as model:
        (prediction,) = classify_files(model, [PictureSource(picture)], top=3)
    inputs = ReportInputs(verifications=[verification], benchmarks=[benchmark])
    inputs.add(str(output), time_layers=time_layers)
    write_file(page, to_html(make_page(inputs)))
    speedups = [timing.speedup for timing in benchmark.results if timing.speedup is not None]
    return DemoResult(
        accuracy=trained.accuracy,
        bundle=output,
        verdict=verification.verdict,
        speedup=max(speedups, default=None),
        report=page,
        seconds=time.perf_counter() - start,
        verification=verification,
        benchmark=benchmark,
        prediction=prediction,
    )
