"""What is in a bundle, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.calibration_record import CalibrationRecord, float_layers_sentence
from resdeploy.bundle.manifest import Manifest
from resdeploy.documents import parse
from resdeploy.errors import BundleError
from resdeploy.pages.blocks import Block, Facts, Section, Table, Text
from resdeploy.report.layers import layer_blocks
from resdeploy.report.trade_off import trade_off_blocks
from resdeploy.results.benchmark import LayerTimes
from resdeploy.results.provenance import Environment

NONE = "-"
BUNDLE_HINT = "export the bundle again"


def export_summary(manifest: Manifest) -> str:
    """One sentence: what the graphs proved when they were written."""
    agreement = min(artifact.parity.agreement for artifact in manifest.artifacts)
    images = manifest.artifacts[0].parity.images
    count = len(manifest.artifacts)
    graphs = "The graph keeps" if count == 1 else f"All {count} graphs keep"
    return (
        f"{graphs} PyTorch's class for {agreement:.1f} % or more of {images} golden images, as "
        "measured at the export."
    )


def contents_sections(
    manifest: Manifest, analysis: Analysis | None, times: LayerTimes | None = None
) -> tuple[Section, ...]:
    """Parity, input, calibration, trade-off, layers.

    Raises:
        BundleError: the manifest's record of the calibration is damaged.
    """
    sections = [Section(title="The graphs", blocks=(_parity(manifest), _input(manifest)))]
    if manifest.calibration is not None:
        record = calibration_record(manifest)
        sections.append(Section(title="Calibration", blocks=_calibration(record)))
        if record.points:
            sections.append(
                Section(title="Accuracy or speed", blocks=trade_off_blocks(record.points))
            )
    if analysis is not None:
        sections.append(Section(title="Layers", blocks=layer_blocks(analysis, times)))
    return tuple(sections)


def calibration_record(manifest: Manifest) -> CalibrationRecord:
    """The typed form of the manifest's key.

    Raises:
        BundleError: it is damaged.
    """
    try:
        return parse(CalibrationRecord, manifest.calibration, "calibration")
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest is damaged: {error}", BUNDLE_HINT) from error


def export_environment(manifest: Manifest) -> Environment:
    """Where and when the bundle was made.

    Raises:
        BundleError: the manifest does not say it.
    """
    try:
        return parse(Environment, manifest.provenance, "provenance")
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest is damaged: {error}", BUNDLE_HINT) from error


def _parity(manifest: Manifest) -> Table:
    rows = tuple(
        (
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs} of {artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.sqnr_db_p5:.1f} dB",
            f"{artifact.parity.max_error:.2g}",
        )
        for artifact in manifest.artifacts
    )
    head = ("graph", "size", "INT8 convs", "same class", "SQNR", "worst 5 %", "max error")
    images = manifest.artifacts[0].parity.images
    caption = (
        "Logits of each graph in ONNX Runtime on a CPU, against PyTorch in FP32, on the "
        f"{images} golden images that travel in the bundle; SQNR is the median over them."
    )
    return Table(caption=caption, head=head, rows=rows)


def _input(manifest: Manifest) -> Facts:
    prep, size = manifest.preprocessing, manifest.preprocessing.image_size
    model = manifest.model
    return Facts(
        facts=(
            ("network", f"{model.get('name')}, {manifest.classes} classes"),
            ("weights", str(model.get("source", "unknown"))),
            ("their sha256", str(model.get("source_sha256", "unknown"))),
            ("input", f"uint8 RGB, (batch, {size}, {size}, 3)"),
            (
                "from a picture",
                f"shorter side to {prep.resize} pixels ({prep.interpolation}), central {size} x "
                f"{size}",
            ),
            (
                "in the graph",
                f"(pixel / 255 - mean) / std, mean {_numbers(prep.mean)}, std {_numbers(prep.std)}",
            ),
        )
    )


def _calibration(record: CalibrationRecord) -> tuple[Block, ...]:
    facts = [
        ("calibrator", ", ".join(f"{name} for {kind}" for kind, name in record.method.items())),
        ("images", f"{record.images:,}, listed by sha256 in manifest.json"),
        (
            "coverage",
            f"the largest value grows by {record.growth_percent:.0f} % from half of the images to "
            "all (median of the tensors)",
        ),
        *(("passed over", f"{count} {reason}") for reason, count in record.skipped.items()),
    ]
    if record.classes:
        one = record.classes
        facts.append(
            (
                "classes",
                f"{one.represented} of {one.classes}, with {one.fewest} to {one.most} images each",
            )
        )
    blocks: list[Block] = [Facts(facts=tuple(facts))]
    if record.scores:
        blocks.append(_scores(record))
    blocks += [Text(text=float_layers_sentence(one)) for one in record.float_layers]
    return tuple(blocks)


def _scores(record: CalibrationRecord) -> Table:
    return Table(
        caption=f"Every calibrator that was tried, on {record.scoring_images} images that it had "
        "not seen, against FP32.",
        head=("calibrator", "for", "same class", "SQNR", "worst 5 %"),
        rows=tuple(
            (
                score.calibrator,
                score.encoding.value,
                f"{score.agreement:.1f} %",
                f"{score.sqnr_db:.1f} dB",
                f"{score.sqnr_db_p5:.1f} dB",
            )
            for score in record.scores
        ),
        chosen=frozenset(
            index
            for index, score in enumerate(record.scores)
            if record.method.get(score.encoding.value) == score.calibrator
        ),
        aside=True,
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
