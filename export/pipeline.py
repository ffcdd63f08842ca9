"""`resdeploy export`: checkpoint in, bundle out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.bundle import (
    ANALYSIS,
    CALIBRATION,
    CALIBRATION_CACHE,
    GOLDEN,
    LABELS,
    REPORT,
    open_bundle,
)
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import (
    MANIFEST,
    Artifact,
    Encoding,
    FileRecord,
    Manifest,
    Parity,
    Precision,
    write_manifest,
)
from resdeploy.bundle.work import Work
from resdeploy.calibration.tensorrt_cache import write_cache
from resdeploy.documents import jsonable
from resdeploy.errors import ExportError
from resdeploy.export.analysis import analyse
from resdeploy.export.golden import choose_golden, make_golden, measure_parity
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.qdq import activation_parameters
from resdeploy.export.graph.residual_scales import has_aligned_scales
from resdeploy.export.graph.to_onnx import OPSET, to_bytes, to_onnx
from resdeploy.export.graph.work import work_of
from resdeploy.export.mixed_precision.accuracy_target import mix
from resdeploy.export.mixed_precision.evaluator import AccuracyTarget
from resdeploy.export.mixed_precision.latency_target import fit_time
from resdeploy.export.mixed_precision.tradeoff import trade_off
from resdeploy.export.quantization.calibrate import calibrate, require_images
from resdeploy.export.quantization.recipe import write_recipes
from resdeploy.export.quantization.result import Calibration, with_dla
from resdeploy.export.quantization.sensitivity import costs_alone
from resdeploy.export.source import Source, read_source
from resdeploy.export.triton.repository import TritonRepository, refuse_repository, write_repository
from resdeploy.images.preprocessing import image_digest
from resdeploy.machine.device import read_device
from resdeploy.progress import Progress, silent
from resdeploy.report.bundle_page import bundle_page
from resdeploy.results.provenance import collect_provenance
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.backends.tensorrt.build import BuildReport, build, choose_flavour
from resdeploy.runtime.backends.tensorrt.flavour import ARTIFACTS as TENSORRT_ARTIFACTS
from resdeploy.runtime.backends.tensorrt.flavour import load_tensorrt
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.verification.golden_check import (
    FLOAT_FLOOR_DB,
    INT8_FLOOR_DB,
    different_rows,
    run_batches,
)
from resdeploy.statistics import sqnr_db
from resdeploy.storage import new_directory, refuse_existing, sha256
from resdeploy.train.model.resnet import Classifier
from resdeploy.train.run.folder import LATEST

logger = logging.getLogger(__name__)

# An odd number of images at once against one at a time: a frozen batch axis would fail here.
ODD_BATCH = 7
REPORT_IMAGES = 8  # a quarter of the golden ones: the order of the tensors needs no more
VERSIONS_HINT = "install the versions in constraints.txt; if it persists, please report it"
FILE_NAMES = {
    (Precision.FP32, Encoding.FLOAT): "fp32.onnx",
    (Precision.FP16, Encoding.FLOAT): "fp16.onnx",
    (Precision.INT8, Encoding.TENSORRT): "int8.onnx",
    (Precision.INT8, Encoding.CPU): "int8-cpu.onnx",
    (Precision.INT8, Encoding.DLA): "int8-dla.onnx",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to export, and how; `source.read_source` explains the first four."""

    source: Path = LATEST
    image_size: int | None = None
    labels: Path | None = None
    calibration_data: Path | None = None
    output: Path | None = None
    """The bundle; None: NAME.bundle in the working folder, after the source."""
    fp16: bool = False
    int8: bool = False
    dla: bool = False
    """Also a graph for NVIDIA's deep-learning accelerator; with `int8`."""
    calibration_images: int = 512
    calibrator: str = "auto"
    """See `calibrate.calibrate`."""
    int8_shortcuts: bool = False
    """Whether TensorRT's INT8 graph carries shortcuts in INT8 rather than float16."""
    min_agreement: float | None = None
    """Percent; with `max_drop`, what layers are handed back to float for: see `AccuracyTarget`."""
    max_drop: float | None = None
    target_ms: float | None = None
    """Instead: layers of the CPU's graph go back for as long as one image takes at most this."""
    search_seconds: float = 600.0
    seed: int = 0
    """Decides which images calibrate and which are golden."""
    engine: bool = False
    """Whether to build TensorRT engines of the graphs, too, for this machine."""
    triton: Path | None = None
    """Where to write a model repository of Triton, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What `resdeploy export` reports."""

    bundle: Path
    artifacts: tuple[Artifact, ...]
    calibration: dict[str, Any] | None
    parity: dict[str, Parity]
    """By the artifact's name."""
    engines: tuple[BuildReport, ...]
    triton: TritonRepository | None
    seconds: float


def export(
    config: ExportConfig, *, force: bool = False, progress: Progress = silent
) -> ExportResult:
    """Write a bundle; when anything fails before it is whole, no bundle is left.

    Raises:
        BackendError: engines were asked for, and cannot be built here.
        CheckpointError: the source cannot be used.
        DataError, CalibrationError: the images cannot be used.
        ExportError: the labels do not fit, or a graph does not agree with PyTorch.
        OutputError: an output exists already, or cannot be written.
    """
    start = time.perf_counter()
    gate = AccuracyTarget(
        min_agreement=config.min_agreement,
        max_drop=config.max_drop,
        seconds=config.search_seconds,
    )
    if gate.is_set and not config.int8:
        raise ExportError("--min-agreement and --max-drop concern INT8 graphs", "add --int8")
    if config.target_ms is not None and (gate.is_set or not config.int8):
        raise ExportError(
            "--target-ms chooses what --min-agreement and --max-drop choose, in INT8 graphs",
            "leave those out, and add --int8",
        )
    if config.dla and not config.int8:
        raise ExportError("--dla concerns an INT8 graph", "add --int8")
    if config.engine:
        load_tensorrt(choose_flavour())  # before the work, rather than at its end
    if config.output is not None:
        refuse_existing(config.output, force=force, marker=MANIFEST)
    source = read_source(
        config.source,
        image_size=config.image_size,
        labels=config.labels,
        calibration_data=config.calibration_data,
    )
    output = config.output or Path(f"{source.name}.bundle")
    refuse_existing(output, force=force, marker=MANIFEST)
    if config.triton is not None:
        refuse_repository(config.triton, force=force)
    if config.int8:
        require_images(source)

    preprocessing = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), preprocessing.mean, preprocessing.std)
    golden = make_golden(classifier, choose_golden(source.pools, preprocessing, config.seed))
    logger.info(
        "exporting %s at %d pixels", source.checkpoint.architecture.name, preprocessing.image_size
    )
    model = to_onnx(classifier, preprocessing.image_size)
    calibration = None
    if config.int8:
        golden_digests = {image_digest(image) for image in golden.images}
        calibration = calibrate(
            model,
            source,
            calibrator=config.calibrator,
            images=config.calibration_images,
            seed=config.seed,
            golden_digests=golden_digests,
            progress=progress,
            int8_shortcuts=config.int8_shortcuts,
        )
        model = calibration.model
        if gate.is_set:
            calibration = mix(
                model, source, calibration, gate, seed=config.seed,
                golden_digests=golden_digests, progress=progress,
            )  # fmt: skip
        if config.target_ms is not None:
            calibration = fit_time(
                model, source, calibration, config.target_ms, seconds=config.search_seconds,
                seed=config.seed, golden_digests=golden_digests, progress=progress,
            )  # fmt: skip
        points = trade_off(model, calibration, golden.images[:1], progress)
        calibration = replace(calibration, points=points)
        if config.dla:
            calibration = with_dla(calibration)
    artifacts: list[Artifact] = []
    bit_exact: dict[str, Float32Array] = {}
    with new_directory(output, force=force, marker=MANIFEST) as folder:
        for precision, encoding, graph in _graphs(model, config, calibration):
            artifact, logits = _write_artifact(folder, precision, encoding, graph, golden)
            artifacts.append(artifact)
            if logits is not None and _same_everywhere(model, calibration, encoding):
                bit_exact[artifact.name] = logits
        golden = replace(golden, bit_exact=bit_exact)
        analysis = _analyse(model, calibration, golden, progress)
        manifest = _write_rest(
            folder, output.name, source, artifacts, golden, calibration, analysis, work_of(model)
        )
    engines = _build_engines(output, progress) if config.engine else ()
    triton = None
    if config.triton is not None:
        triton = write_repository(open_bundle(output), config.triton, force=force)
    return ExportResult(
        bundle=output,
        artifacts=manifest.artifacts,
        calibration=calibration.summary() if calibration else None,
        parity={artifact.name: artifact.parity for artifact in artifacts},
        engines=engines,
        triton=triton,
        seconds=time.perf_counter() - start,
    )


def _graphs(
    model: ir.Model, config: ExportConfig, calibration: Calibration | None
) -> Iterator[tuple[Precision, Encoding, ir.Model]]:
    yield Precision.FP32, Encoding.FLOAT, model
    if config.fp16:
        half = model.clone()
        to_float16(half)
        yield Precision.FP16, Encoding.FLOAT, half
    if calibration is not None:
        for encoding, recipe in calibration.recipes.items():
            yield Precision.INT8, encoding, recipe.apply(model)


def _same_everywhere(model: ir.Model, calibration: Calibration | None, encoding: Encoding) -> bool:
    """Whether it is the CPU's graph, and leaves nothing to the order or rounding of a kernel."""
    if calibration is None or encoding is not Encoding.CPU:
        return False
    recipe = calibration.recipes[encoding]
    edges = recipe.edges(model)
    scales = activation_parameters(model.graph, edges, recipe.ranges, recipe.encoding)
    return not recipe.in_float and has_aligned_scales(model.graph, edges, scales)


def _write_artifact(
    folder: Path, precision: Precision, encoding: Encoding, model: ir.Model, golden: Golden
) -> tuple[Artifact, Float32Array | None]:
    """The artifact, and its golden logits where no bit of them depends on the batch."""
    graph = to_bytes(model)
    file = FILE_NAMES[precision, encoding]
    (folder / file).write_bytes(graph)
    backend = OnnxRuntimeCpu(graph, encoding)
    logits = run_batches(backend, golden.images)
    parity = measure_parity(golden, logits)
    apart = run_batches(backend, golden.images[:ODD_BATCH], batch=1)
    together = run_batches(backend, golden.images[:ODD_BATCH], batch=ODD_BATCH)
    backend.close()
    floor = FLOAT_FLOOR_DB.get(precision, INT8_FLOOR_DB)
    if not parity.sqnr_db >= floor:
        raise ExportError(
            f"{file} does not give PyTorch's answers: {parity.agreement:.0f} % are the same, at "
            f"{parity.sqnr_db:.1f} dB where at least {floor:.0f} are expected",
            "calibrate on images like those that the network will see, with --calibration-data"
            if precision is Precision.INT8
            else VERSIONS_HINT,
        )
    # Sums in another order may carry a value over to the next step of INT8: as far as that goes,
    # but no further, may an answer depend on its batch.
    between_batches = float(np.median(sqnr_db(apart, together)))
    if not between_batches >= floor:
        raise ExportError(
            f"{file} answers differently in a batch of {ODD_BATCH}: {between_batches:.1f} dB",
            VERSIONS_HINT,
        )
    same = not different_rows(apart, together) and not different_rows(apart, logits[:ODD_BATCH])
    covered = coverage(model.graph, encoding)
    artifact = Artifact(
        precision=precision,
        encoding=encoding,
        file=file,
        bytes=len(graph),
        sha256=sha256(graph),
        opset=OPSET,
        convs=covered.convs,
        int8_convs=covered.int8_convs,
        parity=parity,
    )
    return artifact, logits if same else None


def _build_engines(path: Path, progress: Progress) -> tuple[BuildReport, ...]:
    bundle = open_bundle(path)
    return tuple(
        build(bundle, artifact, choose_flavour(), BuildOptions(), progress=progress)
        for artifact in bundle.manifest.artifacts
        if artifact.name in TENSORRT_ARTIFACTS
    )


def _analyse(
    model: ir.Model, calibration: Calibration | None, golden: Golden, progress: Progress
) -> Analysis | None:
    """For the report: of the TensorRT encoding, which is the coarser one."""
    if calibration is None:
        return None
    images = golden.images[:REPORT_IMAGES]
    costs = costs_alone(model, calibration.recipes[Encoding.TENSORRT], images, progress)
    return analyse(model, calibration, costs)


def _write_rest(
    folder: Path,
    name: str,
    source: Source,
    artifacts: list[Artifact],
    golden: Golden,
    calibration: Calibration | None,
    analysis: Analysis | None,
    work: Work,
) -> Manifest:
    provenance = collect_provenance(read_device().to_json())
    model = {
        **source.checkpoint.architecture.to_json(),
        "source": str(source.checkpoint.path.resolve()),
        "source_sha256": source.checkpoint.sha256,
    }
    contents = {
        LABELS: "".join(f"{label}\n" for label in source.labels).encode(),
        GOLDEN: golden.to_bytes(),
    }
    recorded: dict[str, Any] | None = None
    if calibration is not None and analysis is not None:
        contents[ANALYSIS] = (json.dumps(jsonable(analysis)) + "\n").encode()
        contents[CALIBRATION] = write_recipes(calibration.recipes)
        contents[CALIBRATION_CACHE] = write_cache(calibration.recipes[Encoding.TENSORRT].ranges)
        recorded = {
            **calibration.summary(),
            "image_sha256": list(calibration.digests),
            "selection_sha256": list(calibration.selection_digests),
        }
    manifest = Manifest(
        model=model,
        preprocessing=source.preprocessing,
        artifacts=tuple(artifacts),
        files={},
        calibration=recorded,
        golden={
            "images": len(golden.images),
            "from": "data" if source.pools.golden else "synthetic",
        },
        provenance=provenance,
        work=work,
    )
    contents[REPORT] = bundle_page(name, manifest, analysis)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    records = {
        file: FileRecord(bytes=len(content), sha256=sha256(content))
        for file, content in contents.items()
    }
    manifest = replace(manifest, files=records)
    write_manifest(folder, manifest)
    return manifest
