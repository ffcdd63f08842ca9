"""Report sections of a bundle: its graphs, its calibration and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.batch_norm_shift import BatchNormShift, shift_sentence, variance_factor
from resdeploy.bundle.calibration_record import (
    CalibrationRecord,
    float_layers_sentence,
    target_sentence,
)
from resdeploy.bundle.manifest import Manifest, Quality
from resdeploy.errors import BundleError
from resdeploy.images.preprocessing import size_text
from resdeploy.images.preprocessing_choice import describe_choice
from resdeploy.images.preprocessing_text import other_setting_facts
from resdeploy.json_documents import parse
from resdeploy.pages.blocks import Block, Facts, Section, Table, Text
from resdeploy.report.layers import layer_blocks
from resdeploy.report.trade_off import trade_off_blocks
from resdeploy.result_files.benchmark import LayerTimes
from resdeploy.result_files.provenance import Environment, without_folders
from resdeploy.tables import NONE, WORST, percentage, plural

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True)
class BundleContents:
    """A bundle's manifest and analysis, and the times of its layers if they were measured."""

    name: str
    manifest: Manifest
    analysis: Analysis | None
    times: LayerTimes | None = None


def export_summary(manifest: Manifest) -> str:
    """Return one sentence with the agreement that the export measured."""
    agreement = min(artifact.parity.agreement for artifact in manifest.artifacts)
    golden, count = manifest.golden, len(manifest.artifacts)
    graphs = "the graph" if count == 1 else f"each of the {count} graphs"
    share = f"at least {percentage(agreement)}" if agreement < 100 else "all"
    return (
        f"At the export, {graphs} had the same predicted class as {golden.reference_name} on "
        f"{share} of {golden.described}."
    )


def network_text(manifest: Manifest) -> str:
    """Return the network of a bundle, its input size, its classes and the day of the export."""
    size, date = manifest.preprocessing.image_size, export_environment(manifest).date[:10]
    name, classes = manifest.model.get("name"), plural(manifest.classes, "class")
    return f"{name} at {size_text(size)} pixels, {classes}, exported on {date}"


def bundle_sections(bundles: Sequence[BundleContents]) -> list[Section]:
    """Return the sections about each bundle; with several bundles, each title names its bundle."""
    return [
        Section(title=f"{title} of {bundle.name}" if len(bundles) > 1 else title, blocks=blocks)
        for bundle in bundles
        for title, blocks in _sections(bundle)
    ]


def calibration_record(manifest: Manifest) -> CalibrationRecord:
    """Return the calibration of a manifest, or raise BundleError if it is damaged."""
    return _parse(CalibrationRecord, manifest.calibration, "calibration")


def export_environment(manifest: Manifest) -> Environment:
    """Return the provenance of a bundle, or raise BundleError if it is damaged."""
    return _parse(Environment, manifest.provenance, "provenance")


def _parse(kind: type[Document], value: Any, key: str) -> Document:
    try:
        return parse(kind, value, key)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest is damaged: {error}", "export the bundle again") from error


def _sections(bundle: BundleContents) -> list[tuple[str, tuple[Block, ...]]]:
    manifest, sections = bundle.manifest, list[tuple[str, tuple[Block, ...]]]()
    sections.append(("Graphs", (_parity(manifest), _input(manifest))))
    if manifest.batch_norm_shift is not None:
        sections.append(("Batch norms on the images", _batch_norms(manifest.batch_norm_shift)))
    if manifest.calibration is not None:
        record = calibration_record(manifest)
        sections.append(("Calibration", _calibration(record)))
        if record.points:
            sections.append(("Accuracy against latency", trade_off_blocks(record.points)))
    if bundle.analysis is not None:
        sections.append(("Layers", layer_blocks(bundle.analysis, bundle.times)))
    return sections


def _quality(quality: Quality | None) -> str:
    if quality is None:
        return NONE
    return f"{percentage(quality.agreement, 2)} of {quality.images:,}, {quality.sqnr_db:.1f} dB"


def _parity(manifest: Manifest) -> Table:
    judged = any(artifact.quality for artifact in manifest.artifacts)
    rows = tuple(
        (
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs} of {artifact.convs}",
            percentage(artifact.parity.agreement),
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.sqnr_db_p5:.1f} dB",
            f"{artifact.parity.max_error:.2g}",
            *((_quality(artifact.quality),) if judged else ()),
        )
        for artifact in manifest.artifacts
    )
    head = [
        "graph", "size", "INT8 convs", "agreement", "SQNR", "SQNR p5", "max error",
        *(["on other images"] if judged else []),
    ]  # fmt: skip
    golden = manifest.golden
    caption = (
        f"Graphs of the bundle. Each in ONNX Runtime on a CPU, compared with "
        f"{golden.reference_name} in FP32 on {golden.described}. Agreement: images with the same "
        "predicted class. SQNR: signal-to-quantisation-noise ratio of the logits, median and 5th "
        "percentile (p5)."
    )
    if judged:
        caption += (
            " On other images: agreement and SQNR on images that did not calibrate the graph."
        )
    return Table(caption=caption, head=tuple(head), rows=rows)


def _input(manifest: Manifest) -> Facts:
    model, prep = manifest.model, manifest.preprocessing
    return Facts(
        facts=(
            ("weights", without_folders(str(model.get("source", "unknown")))),
            ("sha256 of the weights", str(model.get("source_sha256", "unknown"))),
            ("input", f"uint8 RGB, shape (batch, {prep.size[0]}, {prep.size[1]}, 3)"),
            ("pre-processing", describe_choice(prep, manifest.preprocessing_origins)),
            *other_setting_facts(prep),
        )
    )


def _batch_norms(shift: BatchNormShift) -> tuple[Block, ...]:
    sentence = shift_sentence(shift)
    worst = sorted(shift.norms, key=lambda norm: -norm.mean_shift)[:WORST]
    return (
        Text(text=f"{sentence[0].upper()}{sentence[1:]}."),
        Table(
            caption=f"The {len(worst)} of {plural(len(shift.norms), 'batch norm')} whose input "
            "differs most from that in training. Mean: distance in recorded standard deviations; "
            "variance: factor. Both are medians over the channels.",
            head=("batch norm", "mean", "variance"),
            rows=tuple(
                (norm.name, f"{norm.mean_shift:.2g}", variance_factor(norm.variance_octaves))
                for norm in worst
            ),
            html_only=True,
        ),
    )


def _calibration(record: CalibrationRecord) -> tuple[Block, ...]:
    balance = record.classes
    facts = [
        ("calibrator", ", ".join(f"{name} for {kind}" for kind, name in record.method.items())),
        ("images", f"{record.images:,}; manifest.json lists their sha256"),
        (
            "convergence",
            f"from half of the images to all of them, the largest value of a tensor grew by "
            f"{record.growth_percent:.0f} % (median over the tensors)",
        ),
        *(("skipped", f"{count} {reason}") for reason, count in record.skipped.items()),
    ]
    if balance:
        images = f"with {balance.fewest} to {balance.most} images each"
        facts.append(("classes", f"{balance.represented} of {balance.classes}, {images}"))
    blocks: list[Block] = [Facts(facts=tuple(facts))]
    if record.scores:
        blocks.append(_scores(record))
    blocks += [Text(text=float_layers_sentence(layers)) for layers in record.float_layers]
    blocks += [Text(text=f"{target_sentence(result)}.") for result in record.targets]
    return tuple(blocks)


def _scores(record: CalibrationRecord) -> Table:
    return Table(
        caption=f"Calibrators, compared with FP32 on {record.scoring_images} held-out images. "
        "Those in the bundle are highlighted.",
        head=("calibrator", "encoding", "agreement", "SQNR", "SQNR p5"),
        rows=tuple(
            (
                score.calibrator,
                score.encoding.value,
                percentage(score.agreement),
                f"{score.sqnr_db:.1f} dB",
                f"{score.sqnr_db_p5:.1f} dB",
            )
            for score in record.scores
        ),
        highlighted=frozenset(
            index
            for index, score in enumerate(record.scores)
            if record.method.get(score.encoding.value) == score.calibrator
        ),
        html_only=True,
    )
