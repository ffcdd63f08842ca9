"""Measurement of one row of the support matrix: an export, and what engines make of its graphs."""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from benchmarks.results import FLOAT_KINDS, EncodingResult, SupportRow
from benchmarks.serving.payloads import picture_request
from benchmarks.serving.servers import OURS, free_port, run_process
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import Artifact, Encoding
from resdeploy.errors import ResdeployError
from resdeploy.export.graph.coverage import Coverage, coverage, inexact_nodes
from resdeploy.export.graph.placement import WEIGHTED, node_name
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.quantization.recipe import read_recipe
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.result_files.verification import Rule
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu, session_options
from resdeploy.runtime.backends.onnxruntime.session import DISABLED_OPTIMIZER
from resdeploy.runtime.backends.tensorrt.build import build
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import ARTIFACTS, Flavour
from resdeploy.runtime.bench.benchmark import BenchmarkConfig, run_benchmark
from resdeploy.runtime.bench.contenders import CEILINGS, PYTORCH
from resdeploy.runtime.verification.golden_check import run_batches
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import agreement_percent, compare_accuracy, ratio_interval, sqnr_db

BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFiles:
    """Images that calibrated nothing."""

    files: tuple[Path, ...]
    classes: np.ndarray | None
    """True classes (N,); None if they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to measure."""

    title: str
    source: str
    weights: str
    config: ExportConfig
    held_out: LabelledFiles
    seconds: float
    """Time limit of the benchmark for each contender."""


def measure_row(task: Task, progress: Progress) -> SupportRow:
    """Export the network, and return its row; one with the error if the export refuses it."""
    size = task.config.image_size
    assert isinstance(size, int)
    try:
        bundle = open_bundle(export(task.config, force=True, progress=progress).bundle)
    except ResdeployError as error:
        return SupportRow(
            network=task.title, source=task.source, weights=task.weights, image_size=size,
            error=str(error),
        )  # fmt: skip
    files = task.held_out.files
    (batch,) = read_batches(files, bundle.manifest.preprocessing, len(files))
    assert len(batch.positions) == len(files)
    logits = {
        name: _logits(bundle, bundle.artifact(name), batch.images)
        for name in ("fp32", "int8-cpu", "int8")
    }
    classes = task.held_out.classes
    reference = logits["fp32"]
    graph = ir.from_proto(onnx.load_from_string(bundle.read("int8-cpu.onnx"))).graph
    integer_convs, float_convs, linear = onnxruntime_kernels(bundle.read("int8-cpu.onnx"))
    engine, speedups = _speedup(bundle, task.seconds, progress)
    failures, engine_convs = _build_engines(bundle, progress)
    exact = verify(bundle, backend="onnxruntime-cpu", precision="int8").results[0]
    return SupportRow(
        network=task.title,
        source=task.source,
        weights=task.weights,
        image_size=size,
        images=len(reference),
        fp32_top1=None
        if classes is None
        else 100 * float(np.mean(reference.argmax(axis=1) == classes)),
        encodings={
            encoding.value: EncodingResult(
                convs=bundle.artifact(name).convs,
                int8_convs=bundle.artifact(name).int8_convs,
                agreement=agreement_percent(reference, logits[name]),
                sqnr_db=float(np.median(sqnr_db(reference, logits[name]))),
                drop=None
                if classes is None
                else compare_accuracy(reference, logits[name], classes).drop,
                float_convs=_float_convs(bundle, encoding),
            )
            for encoding, name in ((Encoding.CPU, "int8-cpu"), (Encoding.TENSORRT, "int8"))
        },
        onnxruntime_int8_convs=integer_convs,
        onnxruntime_float_convs=float_convs,
        onnxruntime_int8_linear=linear,
        linear=sum(node.op_type == "Gemm" for node in graph),
        fastest=engine,
        speedup=speedups,
        bit_exact=exact.rule is Rule.BIT_EXACT and not exact.different,
        inexact=dict(sorted(Counter(inexact_nodes(graph, Encoding.CPU).values()).items())),
        engines={name: failures.get(name, "") for name in ARTIFACTS},
        engine_int8_convs=engine_convs,
        served=_is_served(bundle),
    )


def onnxruntime_kernels(graph: bytes) -> tuple[int, tuple[str, ...], int]:
    """Return what ONNX Runtime's optimiser makes of an INT8 graph for CPUs.

    Returns:
        The number of convolutions in integers, the names of those in float, and the number of
        linear layers in integers.
    """
    options = session_options(Encoding.CPU, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"],
            disabled_optimizers=[DISABLED_OPTIMIZER],
        )  # fmt: skip
        nodes = onnx.load(file).graph.node
    kinds = Counter(node.op_type for node in nodes)
    in_float = tuple(node.name for node in nodes if node.op_type in FLOAT_KINDS)
    return kinds["QLinearConv"], in_float, kinds["QGemm"]


def _logits(bundle: Bundle, artifact: Artifact, images: UInt8Array) -> np.ndarray:
    with closing(OnnxRuntimeCpu(bundle.read(artifact.file), artifact.encoding)) as backend:
        return run_batches(backend, images, BATCH)


def _float_convs(bundle: Bundle, encoding: Encoding) -> dict[str, str]:
    """Return the reason for each convolution that is in float."""
    name = "int8-cpu" if encoding is Encoding.CPU else "int8"
    graph = ir.from_proto(onnx.load_from_string(bundle.read(f"{name}.onnx"))).graph
    found: Coverage = coverage(graph, encoding)
    kept = read_recipe(bundle, encoding).in_float
    in_float = {node for region in found.float_regions for node in region.nodes}
    return {
        name: "kept in float for accuracy"
        if name in kept
        else "its input, its output or its weights are not quantised"
        for name in (node_name(node) for node in graph if node.op_type == WEIGHTED[0])
        if name in in_float
    }


def _speedup(
    bundle: Bundle, seconds: float, progress: Progress
) -> tuple[str | None, tuple[float, float, float] | None]:
    """Return the fastest verified CPU engine in INT8, and its speed-up with a 95 % interval.

    The reference is ONNX Runtime in FP32. A benchmark checks each contender before it is timed.
    """
    config = BenchmarkConfig(
        threads=1, seconds=seconds, also=("openvino",), without=(*PYTORCH, CEILINGS)
    )
    results = run_benchmark(bundle, config, progress=progress).results
    baseline = next(
        (r for r in results if (r.contender, r.precision) == ("onnxruntime-cpu", "fp32")), None
    )
    quantised = [r for r in results if r.precision == "int8"]
    if baseline is None or not quantised:
        return None, None
    fastest = min(quantised, key=lambda result: result.p50_ms)
    low_to_high = ratio_interval(np.array(baseline.round_ms), np.array(fastest.round_ms))
    return fastest.contender, low_to_high


def _build_engines(bundle: Bundle, progress: Progress) -> tuple[Mapping[str, str], int | None]:
    """Build all engines; return reasons by graph, and the engine's number of INT8 convolutions."""
    failures: dict[str, str] = {}
    convs = None
    with _own_cache():
        for name in ARTIFACTS:
            try:
                report = build(
                    bundle, bundle.artifact(name), Flavour.RTX, BuildOptions(), progress=progress
                )
            except ResdeployError as error:
                failures[name] = str(error)
                continue
            convs = report.int8_convs if name == "int8" else convs
    return failures, convs


@contextmanager
def _own_cache() -> Iterator[None]:
    """Keep the engines out of the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _is_served(bundle: Bundle) -> bool:
    """Return True if the server starts and classifies a picture."""
    height, width = bundle.manifest.preprocessing.size
    port = free_port()
    command = [sys.executable, "-m", "resdeploy", "serve", bundle.path, "--port", port]
    with (
        tempfile.TemporaryDirectory() as folder,
        run_process(OURS, command, port, "/v2/health/ready") as server,
    ):
        request = picture_request(Path(folder), (height, width))
        sent = urllib.request.Request(
            f"http://127.0.0.1:{server.port}{request.path}",
            Path(request.file).read_bytes(), {"Content-Type": request.content_type},
        )  # fmt: skip
        with urllib.request.urlopen(sent, timeout=60) as reply:
            return int(reply.status) == 200
