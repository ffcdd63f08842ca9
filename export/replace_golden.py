"""Replacement of a bundle's golden images by pictures of a folder, without its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from resdeploy.bundle.bundle import GOLDEN, MODEL_CARD, REPORT, Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import (
    MANIFEST,
    Artifact,
    Encoding,
    ExportWarning,
    GoldenOrigin,
    GoldenRecord,
    GoldenReference,
)
from resdeploy.bundle.quality import quality_warnings
from resdeploy.bundle.signature import check_key, sign_bundle
from resdeploy.export.bundle_files import check_graph, write_contents
from resdeploy.export.golden_images import read_golden_images
from resdeploy.export.noise_analysis import analyse_again
from resdeploy.filesystem import new_directory, refuse_existing
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import run_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenReplacement:
    """A bundle that was written with other golden images."""

    bundle: Path
    artifacts: tuple[Artifact, ...]
    golden: GoldenRecord
    warnings: tuple[ExportWarning, ...]
    schema: str = "resdeploy.golden-replacement/1"


def replace_golden(
    bundle: Bundle,
    data: Path,
    output: Path,
    *,
    seed: int = 0,
    sign: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> GoldenReplacement:
    """Write a copy of a bundle whose golden images are up to 32 pictures of a folder.

    `fp32.onnx` computes the golden logits, because PyTorch's network may be lost. Every graph is
    compared with them as at the export, and the copy gets new warnings, a new analysis and a new
    report. It is signed only with the key `sign`, see `sign_bundle`. `output` may be the bundle
    itself. If anything fails, no file has changed.

    Raises:
        BundleError: The bundle is damaged or has no FP32 graph.
        DataError: The folder has no image for this, or one that cannot be read.
        ExportError: A graph does not agree with `fp32.onnx` on these images.
        OutputError: The output exists, and `force` is not set; or it cannot be written.
    """
    refuse_existing(output, force=force, marker=MANIFEST)
    check_key(sign)
    manifest, reference = bundle.manifest, GoldenReference.FP32
    calibration = manifest.calibration or {}
    used = {*calibration.get("image_sha256", ()), *calibration.get("selection_sha256", ())}
    fp32 = OnnxRuntimeCpu(bundle.read(bundle.artifact("fp32").file), Encoding.FLOAT)
    images = read_golden_images(data, manifest.preprocessing, seed, used)
    golden = Golden(images=images, logits=run_batches(fp32, images, batch=1))
    fp32.close()
    graphs = {artifact.file: bundle.read(artifact.file) for artifact in manifest.artifacts}
    artifacts: list[Artifact] = []
    bit_exact: dict[str, Float32Array] = {}
    for artifact in manifest.artifacts:
        parity, logits = check_graph(
            graphs[artifact.file], artifact.file, artifact.precision, artifact.encoding, golden,
            reference.value,
        )  # fmt: skip
        artifacts.append(replace(artifact, parity=parity))
        # The export decided which graphs are bit-exact on every CPU.
        if logits is not None and artifact.name in bundle.golden().bit_exact:
            bit_exact[artifact.name] = logits
    record = GoldenRecord(images=len(images), origin=GoldenOrigin.DATA, reference=reference)
    before = {warning.message for warning in quality_warnings(manifest)}
    kept = [warning for warning in manifest.warnings if warning.message not in before]
    analysis = analyse_again(bundle, artifacts, golden, progress)
    manifest = replace(manifest, artifacts=tuple(artifacts), golden=record)
    doubts = quality_warnings(manifest, analysis.remedy if analysis else None)
    manifest = replace(manifest, warnings=(*kept, *doubts))
    contents = {
        **{file: bundle.read(file) for file in manifest.files if file not in (REPORT, MODEL_CARD)},
        GOLDEN: replace(golden, bit_exact=bit_exact).to_bytes(),
    }
    with new_directory(output, force=force, marker=MANIFEST) as folder:
        for file, graph in graphs.items():
            (folder / file).write_bytes(graph)
        manifest = write_contents(folder, output.name, manifest, analysis, contents)
    if sign is not None:
        sign_bundle(open_bundle(output), sign)
    return GoldenReplacement(
        bundle=output, artifacts=manifest.artifacts, golden=record, warnings=manifest.warnings
    )
