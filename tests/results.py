"""Results as the commands write them, made without a measurement."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.bundle.manifest import Encoding, ExportWarning, Precision
from resdeploy.bundle.operation_counts import WorkTotals
from resdeploy.machine.device import Device
from resdeploy.result_files.benchmark import Benchmark, BenchmarkEnvironment, Timing
from resdeploy.result_files.comparison import AccuracyChange, Comparison
from resdeploy.result_files.provenance import Environment
from resdeploy.result_files.scoring import ScoringAccuracy, ScoringReport
from resdeploy.statistics import Verdict

ROUNDS = 15
SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"


def read_document(text: str) -> Any:
    """Return the document that a command printed, after its check against `docs/schemas`."""
    document = json.loads(text)
    if find_spec("jsonschema_rs"):  # missing in the environments of tests/pythons
        validator_of(document["schema"]).validate(document)
    return document


@cache
def validator_of(schema: str) -> Any:
    import jsonschema_rs

    file = SCHEMAS / f"{schema.removeprefix('resdeploy.').split('/')[0]}.json"
    return jsonschema_rs.validator_for(json.loads(file.read_text()))


def timing(
    contender: str = "onnxruntime-cpu",
    precision: Precision = Precision.FP32,
    encoding: Encoding = Encoding.FLOAT,
    *,
    ms: float = 20.0,
    baseline_ms: float = 80.0,
    seed: int = 0,
    **others: Any,
) -> Timing:
    """Return one contender whose times vary by 1 % between rounds, and more within them."""
    generator = np.random.default_rng((seed, *contender.encode(), *precision.value.encode()))
    rounds = ms * (1 + generator.normal(0, 0.01, ROUNDS))
    times = ms * np.exp(generator.gamma(2, 0.02, 1000))
    values: dict[str, Any] = {
        "contender": contender,
        "precision": precision.value,
        "encoding": encoding,
        "batch": 1,
        "threads": 1,
        "calls": 1000,
        "p50_ms": float(np.median(times)),
        "p90_ms": float(np.percentile(times, 90)),
        "p99_ms": float(np.percentile(times, 99)),
        "images_per_second": 1000 / float(times.mean()),
        "energy": None,
        "stages_ms": None,
        "peak_gpu_bytes": None,
        "speedup": baseline_ms / ms,
        "speedup_low": 0.97 * baseline_ms / ms,
        "speedup_high": 1.03 * baseline_ms / ms,
        "round_ms": tuple(map(float, rounds)),
        "quantiles_ms": tuple(map(float, np.percentile(times, np.arange(101)))),
        "cold_start_s": 0.3,
        "peak_rss_bytes": 100 << 20,
        "file_bytes": 22_000_000,
        "limit_share": 0.7,
        "bound": "compute",
    }
    return Timing(**{**values, **others})


def benchmark(
    *,
    seed: int = 0,
    date: str = "2026-11-24T10:00:00+00:00",
    cpu: str = "AMD EPYC",
    image_size: int = 224,
    versions: dict[str, str] | None = None,
) -> Benchmark:
    """Return a benchmark of PyTorch and two graphs."""
    return Benchmark(
        environment=BenchmarkEnvironment(
            date=date,
            command="resdeploy bench r34.bundle --output bench.json",
            versions=versions or {"torch": "2.13.0", "onnxruntime": "1.32.0"},
            platform="Linux",
            device=Device(architecture="x86_64", cpu=cpu, cores=2),
            model="resnet34",
            image_size=image_size,
            mode="stream",
        ),
        results=(
            timing("pytorch-eager", ms=80.0, seed=seed),
            timing(ms=66.0, seed=seed),
            timing("onnxruntime-cpu", Precision.INT8, Encoding.CPU, ms=18.5, seed=seed),
        ),
        work=WorkTotals(macs=3_670_000_000, weights=21_800_000, activations=7_000_000),
        ceilings=Ceilings(
            operations_per_second={"fp32": 1.5e11, "bf16": 3e11, "int8": 6e11},
            bytes_per_second=1.2e10,
        ),
        notices=("jetson_clocks is off: clocks follow the load",),
    )


def comparison(verdict: Verdict = Verdict.INCONCLUSIVE) -> Comparison:
    """Return a comparison of one graph's accuracy in two bundles."""
    change = AccuracyChange(
        artifact="int8-cpu", backend="onnxruntime-cpu", images=450, truth="labels", first=98.67,
        second=98.44, lost=1, gained=0, drop=0.22, drop_low=-0.2, drop_high=0.7, different=450,
        images_to_decide=1200, verdict=verdict,
    )  # fmt: skip
    return Comparison(
        verdict=verdict, first="old.bundle", second="new.bundle", max_drop=0.2, max_slowdown=5.0,
        accuracy=(change,), notices=("the folders hold different images",),
        environment=Environment(date="2026-11-24T10:00:00+00:00", command="resdeploy compare"),
    )  # fmt: skip


def scoring() -> ScoringReport:
    """Return a scoring of nearly right predictions; two of the ten classes have no picture."""
    cells = [(label, label, 143) for label in range(8)] + [(7, 9, 1)]
    return ScoringReport(
        output="predictions", rows=1146, failed=1, first_failed="photos/1/5.png", skipped=2,
        parts=1, resumed_parts=0, seconds=2.5, rows_per_second=458.4,
        engines={"int8-cpu on openvino": 1145}, bundle_sha256="0" * 64, labels=tuple("0123456789"),
        accuracy=ScoringAccuracy(
            rows=1145, percent=99.91, interval=(99.51, 99.98), confusion=tuple(cells)
        ),
        warnings=(ExportWarning(message="the images are few", hint="add more"),),
        environment=Environment(date="2026-11-24T10:00:00+00:00", command="resdeploy score"),
    )  # fmt: skip
