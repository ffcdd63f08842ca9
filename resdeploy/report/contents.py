"""Report sections of a bundle: its graphs, its calibration and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.batch_norm_shift import (
    NO_STATISTICS,
    BatchNormShift,
    shift_sentence,
    variance_factor,
)
from resdeploy.bundle.calibration_record import (
    CalibrationRecord,
    explain_calibrator,
    float_layers_sentence,
    target_sentence,
)
from resdeploy.bundle.manifest import Encoding, Manifest, Precision, graph_name
from resdeploy.errors import BundleError
from resdeploy.images.preprocessing import size_text
from resdeploy.images.preprocessing_choice import describe_choice
from resdeploy.images.preprocessing_text import other_setting_facts
from resdeploy.json_documents import parse
from resdeploy.pages.blocks import Block, Facts, Section, Table, Text
from resdeploy.report.graphs import graph_blocks
from resdeploy.report.layers import layer_blocks
from resdeploy.report.trade_off import trade_off_blocks
from resdeploy.result_files.benchmark import LayerTimes
from resdeploy.result_files.provenance import Environment, without_folders
from resdeploy.statistics import Verdict
from resdeploy.tables import WORST, capitalised, joined, percentage, plural, two_digits

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True)
class BundleContents:
    """A bundle's manifest and analysis, and the times of its layers if they were measured."""

    name: str
    manifest: Manifest
    analysis: Analysis | None
    times: LayerTimes | None = None


def network_text(manifest: Manifest) -> str:
    """Return the network of a bundle, its input size, its classes and the day of the export."""
    size, date = manifest.preprocessing.image_size, export_environment(manifest).date[:10]
    name, classes = manifest.model.get("name"), plural(manifest.classes, "class")
    return f"{name} at {size_text(size)} pixels, {classes}, exported on {date}"


def bundle_sections(bundles: Sequence[BundleContents], *, timed: bool = False) -> list[Section]:
    """Return the sections about each bundle; with several bundles, each title names its bundles.

    A section that is the same for several bundles is returned once. `timed` leaves out the
    latencies of the files during the export, because the page has those of a benchmark.
    """
    found: list[tuple[str, tuple[Block, ...], list[str]]] = []
    for bundle in bundles:
        for title, blocks in _sections(bundle, timed=timed):
            same = [names for *section, names in found if section == [title, blocks]]
            if same:
                same[0].append(bundle.name)
            else:
                found.append((title, blocks, [bundle.name]))
    return [
        Section(title=f"{title} of {joined(names)}" if len(bundles) > 1 else title, blocks=blocks)
        for title, blocks, names in found
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


def _sections(bundle: BundleContents, *, timed: bool) -> list[tuple[str, tuple[Block, ...]]]:
    manifest, sections = bundle.manifest, list[tuple[str, tuple[Block, ...]]]()
    record = calibration_record(manifest) if manifest.calibration is not None else None
    sections.append(("Graphs", (*graph_blocks(manifest, record, timed=timed), _input(manifest))))
    if manifest.batch_norm_shift is not None:
        sections.append(("Batch norms", _batch_norms(manifest.batch_norm_shift)))
    elif manifest.batch_norms_lack_statistics:
        text = f"{capitalised(NO_STATISTICS)}."
        sections.append(("Batch norms", (Text(text=text),)))
    if record is not None:
        sections.append(("Calibration", _calibration(record)))
        if trade_offs := trade_off_blocks(record.points):
            sections.append(("Accuracy against latency", trade_offs))
    if bundle.analysis is not None:
        graph = graph_name(Precision.INT8, bundle.analysis.encoding)
        warned = any(graph in warning.artifacts for warning in manifest.warnings)
        blocks = layer_blocks(bundle.analysis, bundle.times, warned=warned)
        sections.append(("Layers", blocks))
    return sections


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
        Text(text=f"{capitalised(sentence)}."),
        Table(
            caption=f"The {len(worst)} of {plural(len(shift.norms), 'batch norm')} whose input "
            "differs most from that in training. Mean: distance in recorded standard deviations; "
            "variance: factor. Both are medians over the channels. The limits above are for the "
            f"median of all {len(shift.norms)} means and for the variance at the first batch norm "
            "in the network. A large figure of a single one needs no action if they hold.",
            head=("batch norm", "mean", "variance"),
            rows=tuple(
                (norm.name, two_digits(norm.mean_shift), variance_factor(norm.variance_octaves))
                for norm in worst
            ),
            html_only=True,
        ),
    )


def _calibration(record: CalibrationRecord) -> tuple[Block, ...]:
    balance = record.classes
    facts = [
        *(
            (f"calibrator of {_int8_file(encoding)}", record.method[encoding.value])
            for encoding in Encoding
            if encoding.value in record.method
        ),
        ("images", f"{record.images:,}; manifest.json lists their sha256"),
        (
            "convergence",
            f"from half of the images to all of them, the largest value of a tensor grew by "
            f"{record.growth_percent:.0f} % (median over the tensors)",
        ),
        *(("skipped", f"{count} {reason}") for reason, count in record.skipped.items()),
    ]
    if balance:
        least = "" if balance.fewest == balance.most else f"{balance.fewest} to "
        images = f"with {least}{plural(balance.most, 'image')} each"
        facts.append(("classes", f"{balance.represented} of {balance.classes}, {images}"))
    blocks: list[Block] = [Facts(facts=tuple(facts))]
    if record.scores:
        scored = dict.fromkeys(score.encoding for score in record.scores)
        blocks += [
            _scores(record, encoding, explained=bool(index))
            for index, encoding in enumerate(scored)
        ]
    blocks += [Text(text=float_layers_sentence(layers)) for layers in record.float_layers]
    # The warnings have the others.
    held = [result for result in record.targets if result.verdict is Verdict.PASS]
    blocks += [Text(text=f"{target_sentence(result)}.") for result in held]
    return tuple(blocks)


def _scores(record: CalibrationRecord, encoding: Encoding, *, explained: bool) -> Table:
    """Return the scores of one graph's calibrators, the best first."""
    scores = [score for score in record.scores if score.encoding is encoding]
    scores.sort(key=lambda score: score.merit, reverse=True)
    words = ""
    if not explained:
        words = (
            f" {_calibrators_text(record)} The weights are rounded with more care after the "
            "choice, so the figures of the finished graph differ."
        )
    return Table(
        caption=f"Calibrators of {_int8_file(encoding)} on {record.scoring_images} further images, "
        "which only choose the calibrator. The bundle has the one with the highest score, the sum "
        "of SQNR, SQNR p5 and -10 log10 of the divergence. "
        "Agreement is too coarse for this choice (one image is "
        f"{percentage(100 / max(record.scoring_images, 1))}); it decides only between equal "
        f"scores.{words}",
        head=("calibrator", "score", "agreement", "SQNR", "SQNR p5", "divergence"),
        rows=tuple(
            (
                score.calibrator,
                f"{score.merit[0]:.1f}",
                percentage(score.agreement, 2),
                f"{score.sqnr_db:.1f} dB",
                f"{score.sqnr_db_p5:.1f} dB",
                two_digits(score.divergence),
            )
            for score in scores
        ),
        highlighted=frozenset(
            index
            for index, score in enumerate(scores)
            if score.calibrator == record.method.get(encoding.value)
        ),
        html_only=True,
    )


def _calibrators_text(record: CalibrationRecord) -> str:
    """Return the meaning of each kind of calibrator in the tables, and of their columns."""
    names = {score.calibrator.partition("-")[0]: score.calibrator for score in record.scores}
    return (
        "A calibrator is the rule that chooses the range of values that the 256 steps of INT8 "
        f"cover. {'; '.join(map(explain_calibrator, names.values()))}. SQNR: "
        "signal-to-quantisation-noise ratio of the logits (more is better), the median over the "
        "images; p5: its 5th percentile, which shows the worst images; divergence: "
        "Kullback-Leibler divergence of the probabilities from FP32's (less is better), the mean "
        "over the images."
    )


def _int8_file(encoding: Encoding) -> str:
    return f"{graph_name(Precision.INT8, encoding)}.onnx"
