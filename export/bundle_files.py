"""The files of a bundle: graphs, which are checked against PyTorch, and all other files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.batch_norm_shift import BatchNormShift
from resdeploy.bundle.bundle import (
    ANALYSIS,
    CALIBRATION,
    CALIBRATION_CACHE,
    GOLDEN,
    LABELS,
    MODEL_CARD,
    REPORT,
    SBOM,
)
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import (
    Artifact,
    Encoding,
    ExportWarning,
    FileRecord,
    GoldenOrigin,
    GoldenRecord,
    GoldenReference,
    Manifest,
    Parity,
    Precision,
    write_manifest,
)
from resdeploy.bundle.operation_counts import Work
from resdeploy.bundle.quality import quality_warnings
from resdeploy.calibration.tensorrt_cache import write_cache
from resdeploy.errors import ExportError
from resdeploy.export.golden_images import measure_parity
from resdeploy.export.graph.coverage import coverage, inexact_nodes
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.qdq import activation_parameters
from resdeploy.export.graph.residual_scales import has_aligned_scales
from resdeploy.export.graph.saturation import check_no_saturation
from resdeploy.export.graph.to_onnx import OPSET, VERSIONS_HINT, to_bytes
from resdeploy.export.inputs import Source
from resdeploy.export.quantization.judge import Judgement
from resdeploy.export.quantization.recipe import encode_recipes
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.sbom import environment_sbom
from resdeploy.filesystem import sha256
from resdeploy.json_documents import jsonable
from resdeploy.machine.device import read_device
from resdeploy.pages.template import to_html
from resdeploy.report.model_card import model_card
from resdeploy.report.report import bundle_page
from resdeploy.result_files.provenance import collect_provenance, shown_path
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import (
    FLOAT_FLOOR_DB,
    FP16_FLOOR_DB,
    INT8_FLOOR_DB,
    different_rows,
    run_batches,
)
from resdeploy.statistics import sqnr_db

# Each graph must give the same logits for this many images at once as for one at a time. Otherwise,
# the exporter made the batch size a constant.
ODD_BATCH = 7
FILE_NAMES = {
    (Precision.FP32, Encoding.FLOAT): "fp32.onnx",
    (Precision.FP16, Encoding.FLOAT): "fp16.onnx",
    (Precision.INT8, Encoding.TENSORRT): "int8.onnx",
    (Precision.INT8, Encoding.CPU): "int8-cpu.onnx",
    (Precision.INT8, Encoding.DLA): "int8-dla.onnx",
}


def write_graphs(
    folder: Path,
    model: ir.Model,
    golden: Golden,
    calibration: Calibration | None,
    judgement: Judgement | None,
    *,
    half: bool,
) -> tuple[list[Artifact], Golden]:
    """Write and check all graphs; return their artifacts, and `golden` with bit-exact logits.

    `model` is the graph in FP32; with `half`, FP16 is written, too.
    """
    artifacts: list[Artifact] = []
    bit_exact: dict[str, Float32Array] = {}
    for precision, encoding, graph in _graphs(model, calibration, half=half):
        content, file = to_bytes(graph), FILE_NAMES[precision, encoding]
        (folder / file).write_bytes(content)
        parity, logits = check_graph(content, file, precision, encoding, golden)
        covered = coverage(graph.graph, encoding)
        artifact = Artifact(
            precision=precision,
            encoding=encoding,
            file=file,
            bytes=len(content),
            sha256=sha256(content),
            opset=OPSET,
            convs=covered.convs,
            int8_convs=covered.int8_convs,
            parity=parity,
        )
        if judgement is not None and encoding in judgement.logits:
            artifact = replace(artifact, quality=judgement.quality(encoding))
        exact = _rounds_alike(model, calibration, encoding) and not inexact_nodes(
            graph.graph, encoding
        )
        if logits is not None and exact:
            bit_exact[artifact.name] = logits
        artifacts.append(artifact)
    return artifacts, replace(golden, bit_exact=bit_exact)


def _graphs(
    model: ir.Model, calibration: Calibration | None, *, half: bool
) -> Iterator[tuple[Precision, Encoding, ir.Model]]:
    """Yield each graph of the bundle."""
    yield Precision.FP32, Encoding.FLOAT, model
    if half:
        rounded = model.clone()
        to_float16(rounded)
        yield Precision.FP16, Encoding.FLOAT, rounded
    if calibration is not None:
        for encoding, recipe in calibration.recipes.items():
            quantised = recipe.apply(model)
            if encoding is Encoding.CPU:
                check_no_saturation(quantised.graph)
            yield Precision.INT8, encoding, quantised


def _rounds_alike(model: ir.Model, calibration: Calibration | None, encoding: Encoding) -> bool:
    """Return True for the CPU's graph if the integer kernels of all CPUs compute the same."""
    if calibration is None or encoding is not Encoding.CPU:
        return False
    recipe = calibration.recipes[encoding]
    edges = recipe.edges(model)
    parameters = activation_parameters(model.graph, edges, recipe.ranges, recipe.encoding)
    return not recipe.in_float and has_aligned_scales(model.graph, edges, parameters)


def check_graph(
    graph: bytes,
    file: str,
    precision: Precision,
    encoding: Encoding,
    golden: Golden,
    reference: str = "PyTorch",
) -> tuple[Parity, Float32Array | None]:
    """Run a graph on the golden images; return its logits, too, if no bit depends on the batch.

    Raises:
        ExportError: The logits differ too much from the golden logits, which are those of
            `reference`, or between batches.
    """
    backend = OnnxRuntimeCpu(graph, encoding)
    logits = run_batches(backend, golden.images)
    parity = measure_parity(golden, logits)
    single = run_batches(backend, golden.images[:ODD_BATCH], batch=1)
    batched = run_batches(backend, golden.images[:ODD_BATCH], batch=ODD_BATCH)
    backend.close()
    floor = {
        Precision.FP32: FLOAT_FLOOR_DB[Precision.FP32],
        Precision.FP16: FP16_FLOOR_DB,
        Precision.INT8: INT8_FLOOR_DB,
    }[precision]
    if not parity.sqnr_db >= floor:
        raise ExportError(
            f"{file} does not agree with {reference}: the SQNR of its logits is "
            f"{parity.sqnr_db:.1f} dB ({parity.agreement:.0f} % of the predicted classes agree), "
            f"and at least {floor:.0f} dB are required",
            "calibrate on images like those that the network will classify, with --calibration-data"
            if precision is Precision.INT8
            else VERSIONS_HINT,
        )
    # The order of sums depends on the batch size, and may change an INT8 value by one step. So the
    # logits need not be equal, but must be as similar as required above.
    between_batches = float(np.median(sqnr_db(single, batched)))
    if not between_batches >= floor:
        raise ExportError(
            f"the logits of {file} depend on the batch size: the SQNR between batches of 1 and "
            f"{ODD_BATCH} is {between_batches:.1f} dB, and at least {floor:.0f} dB are required",
            VERSIONS_HINT,
        )
    equal = not different_rows(single, batched) and not different_rows(single, logits[:ODD_BATCH])
    return parity, logits if equal else None


def write_other_files(
    folder: Path,
    name: str,
    source: Source,
    artifacts: list[Artifact],
    golden: Golden,
    origin: GoldenOrigin,
    reference: GoldenReference,
    calibration: Calibration | None,
    analysis: Analysis | None,
    work: Work,
    warnings: Sequence[ExportWarning],
    shift: BatchNormShift | None,
    lacks_statistics: bool,
) -> Manifest:
    """Write all files except the graphs; the manifest is the last one."""
    provenance = collect_provenance(read_device().to_json())
    model = {
        **source.network.facts(),
        "source": shown_path(source.network.path),
        "source_sha256": source.network.sha256,
        "held_out": jsonable(source.held_out),
    }
    contents = {
        LABELS: "".join(f"{label}\n" for label in source.labels).encode(),
        GOLDEN: golden.to_bytes(),
        SBOM: environment_sbom(name),
    }
    recorded: dict[str, Any] | None = None
    if calibration is not None:
        contents[CALIBRATION] = encode_recipes(calibration.recipes)
        contents[CALIBRATION_CACHE] = write_cache(calibration.recipes[Encoding.TENSORRT].ranges)
        recorded = {
            **jsonable(calibration.record()),
            "image_sha256": list(calibration.digests),
            "selection_sha256": list(calibration.selection_digests),
        }
    manifest = Manifest(
        model=model,
        preprocessing=source.preprocessing,
        preprocessing_origins=source.choice.origins,
        artifacts=tuple(artifacts),
        files={},
        calibration=recorded,
        golden=GoldenRecord(images=len(golden.images), origin=origin, reference=reference),
        provenance=provenance,
        warnings=tuple(warnings),
        batch_norm_shift=shift,
        batch_norms_lack_statistics=lacks_statistics,
        work=work,
    )
    doubts = quality_warnings(manifest, analysis.remedy if analysis else None)
    manifest = replace(manifest, warnings=(*manifest.warnings, *doubts))
    return write_contents(folder, name, manifest, analysis, contents)


def write_contents(
    folder: Path,
    name: str,
    manifest: Manifest,
    analysis: Analysis | None,
    contents: dict[str, bytes],
) -> Manifest:
    """Write `contents`, analysis, report, model card, and the manifest with their digests."""
    page, preprocessing = bundle_page(name, manifest, analysis), manifest.preprocessing
    card = model_card(page, manifest.model["name"], preprocessing.image_size, manifest.classes)
    contents = {**contents, REPORT: to_html(page), MODEL_CARD: card}
    if analysis is not None:
        contents[ANALYSIS] = (json.dumps(jsonable(analysis)) + "\n").encode()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    records = {
        file: FileRecord(bytes=len(content), sha256=sha256(content))
        for file, content in contents.items()
    }
    manifest = replace(manifest, files=records)
    write_manifest(folder, manifest)
    return manifest
