"""Doubts about the accuracy of a bundle: their limits, their warnings and the text of warnings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.bundle.manifest import (
    Artifact,
    Encoding,
    ExportWarning,
    Manifest,
    Parity,
    Precision,
    Quality,
    QualityOrigin,
    with_use,
)
from resdeploy.tables import joined, plural

if TYPE_CHECKING:
    from resdeploy.bundle.analysis import Remedy  # needs numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """The figures below which a graph is doubtful."""

    agreement: float
    """Images with the same predicted class as FP32, in percent."""
    sqnr_db: float
    """Median SQNR of the logits, in dB."""


# Good INT8 encodings keep 98.5 % of the predicted classes and more, at 30 dB; calibration on
# unsuitable images, or by the maximum of too many, gives 96 % and 17 dB (docs/quantization.md).
# The float graphs reach 123 dB (FP32) and 67 dB (FP16) on a CPU, so less than these limits means
# another arithmetic than the graph's.
LIMITS = {
    Precision.FP32: QualityLimits(agreement=99.9, sqnr_db=80.0),
    Precision.FP16: QualityLimits(agreement=99.5, sqnr_db=50.0),
    Precision.INT8: QualityLimits(agreement=98.0, sqnr_db=20.0),
}
# Remedies aim higher than the limits of the warnings. At 30 dB, about 98.5 % of 5,000 CIFAR-10
# images kept their class in ResNet-34, and at 32 dB 98.9 % (measured 2026-11-23). A few dozen
# images cannot show 99 %, so with fewer than ENOUGH_IMAGES the SQNR counts, too.
ENOUGH_AGREEMENT, ENOUGH_SQNR_DB = 99.0, 30.0
ENOUGH_IMAGES = 100
MIN_AGREEMENT = f"--min-agreement {ENOUGH_AGREEMENT:g}"
NO_INT8_SHORTCUTS = "no --int8-shortcuts"
QAT = "train --qat"
IN_FLOAT = "use a graph in float"
DEVIATES = "deviates from FP32"
NO_BETTER = "no better than always predicting one class"
TRAIN_AGAIN = f"train again, because the network is {NO_BETTER}"
_MACHINES = {Encoding.TENSORRT: "GPU", Encoding.DLA: "DLA"}
COMPARE = ", and see with resdeploy compare if it is better"
SHORTEST = 30  # characters of a shortened warning: names of graphs may begin it
FEW_DO_NOT_DECIDE = "; with so few images, this can be chance"
# Fewer images may all agree, with a probability above 5 %, although one prediction in ten changes.
FEWEST_IMAGES = 29


def export_figures(artifact: Artifact) -> list[Parity | Quality]:
    """Return the figures that the export measured for a graph, the most informative ones first."""
    return [artifact.parity] if artifact.quality is None else [artifact.quality, artifact.parity]


def quality_warnings(manifest: Manifest, remedy: Remedy | None = None) -> list[ExportWarning]:
    """Return a warning for each graph whose figures are below the limits of its precision.

    The hint is the action of `remedy`, as in the report, for the graphs that it applies to.
    """
    doubts: dict[str, str] = {}
    for artifact in manifest.artifacts:
        limits = LIMITS[artifact.precision]
        first, *others = export_figures(artifact)
        figures = [(first, _figures_below(first, limits))]
        figures += [(found, _figures_surely_below(found, limits)) for found in others]
        for found, below in figures:
            if below and artifact.name not in doubts:
                images = _images(found, manifest)
                doubts[artifact.name] = f"{DEVIATES} on {images}: {'; '.join(below)}"
    return _few_images(manifest) + [
        ExportWarning(
            message=f"{with_use(artifact.name, artifact.encoding)} {doubts[artifact.name]}",
            hint=_hint(artifact, manifest, doubts, remedy),
            artifacts=(artifact.name,),
        )
        for artifact in manifest.artifacts
        if artifact.name in doubts
    ]


def relevant_warnings(manifest: Manifest, artifacts: Collection[str]) -> tuple[ExportWarning, ...]:
    """Return the warnings that concern at least one of the graphs with these names."""
    return tuple(
        warning
        for warning in manifest.warnings
        if not warning.artifacts or not set(artifacts).isdisjoint(warning.artifacts)
    )


def shows_no_learning(warnings: Iterable[ExportWarning]) -> bool:
    """Return True if a warning says that the network has learned nothing."""
    return any(NO_BETTER in warning.message for warning in warnings)


def says_deviation(warnings: Iterable[ExportWarning], graph: str) -> bool:
    """Return True if a warning says that this graph deviates from FP32."""
    return any(DEVIATES in warning.message and graph in warning.artifacts for warning in warnings)


def open_warnings(
    manifest: Manifest, warnings: Iterable[ExportWarning], accurate: Collection[str]
) -> list[ExportWarning]:
    """Return the warnings without those that the accuracy on labelled images answers.

    `accurate` names the graphs whose accuracy passed. A warning that they deviate from FP32 is then
    answered; one about the network, its images or a target is not.
    """
    answered = {
        warning.message
        for warning in quality_warnings(manifest)
        if set(warning.artifacts) <= set(accurate)
    }
    return [warning for warning in warnings if warning.message not in answered]


def named_warnings(name: str, warnings: Sequence[ExportWarning]) -> list[ExportWarning]:
    """Return the warnings of one of several bundles, with its name before the message."""
    return [replace(warning, message=f"{name}: {warning.message}") for warning in warnings]


def grouped_by_hint(
    warnings: Iterable[ExportWarning], bundles: Collection[str] = ()
) -> list[tuple[tuple[str, ...], str]]:
    """Return each hint once, after the messages of all warnings that share it.

    Messages that differ only in the name of one of the `bundles` before them become one message.
    """
    messages: dict[str, dict[str, dict[str, None]]] = {}
    for warning in warnings:
        name, _, rest = warning.message.partition(": ")
        name, message = (name, rest) if name in bundles else ("", warning.message)
        names = messages.setdefault(warning.hint, {}).setdefault(message, {})
        names.update({name: None} if name else {})
    return [
        (tuple(f"{joined([*names])}: {m}" if names else m for m, names in group.items()), hint)
        for hint, group in messages.items()
    ]


def warning_lines(warnings: Iterable[ExportWarning], bundles: Collection[str] = ()) -> list[str]:
    """Return the lines of warnings for a console; see `grouped_by_hint`."""
    return [
        line
        for messages, hint in grouped_by_hint(warnings, bundles)
        for line in (
            *(f"warning: {message}" for message in messages),
            *([f"  hint: {hint}"] if hint else []),
        )
    ]


def short_lines(warnings: Iterable[ExportWarning], page: Path) -> list[str]:
    """Return the beginning of each warning as a line, and the page that has all of them."""
    lines = [f"warning: {short_message(warning.message)}" for warning in warnings]
    return [*lines, f"  figures and remedies: {page}"] if lines else []


def short_message(message: str) -> str:
    """Return the beginning of a message, up to a colon, a semicolon or a comma in it."""
    found = re.match(rf".{{{SHORTEST},}}?(?=[:;,] |$)", message, re.DOTALL)
    return found[0] if found else message


def is_below(found: Parity | Quality, limits: QualityLimits) -> bool:
    """Return True if a figure is below its limit."""
    return bool(_figures_below(found, limits))


def _figures_below(found: Parity | Quality, limits: QualityLimits) -> list[str]:
    """Return the figures below their limits as text.

    One image is not enough evidence: of 32 images, one with another class makes 96.9 %.
    """
    allowed = max(1.0, found.images * (1 - limits.agreement / 100))
    return _low_agreement(found, limits, _changed(found) > allowed) + _low_sqnr(found, limits)


def _figures_surely_below(golden: Parity | Quality, limits: QualityLimits) -> list[str]:
    """Return those by which golden images contradict better evidence: SQNR, or 95 % confidence.

    At 98 %, two of 32 images or more have another class in 13 % of all draws, and three in 2.6 %.
    """
    is_low = _highest_agreement(golden) < limits.agreement
    return _low_agreement(golden, limits, is_low) + _low_sqnr(golden, limits)


def _highest_agreement(found: Parity | Quality) -> float:
    """Return the upper bound of the agreement with 95 % confidence, in percent."""
    from resdeploy.changed_predictions import agreement_bound  # needs numpy

    return agreement_bound(_changed(found), found.images)


def _low_agreement(found: Parity | Quality, limits: QualityLimits, is_low: bool) -> list[str]:
    if not is_low:
        return []
    few = FEW_DO_NOT_DECIDE if _highest_agreement(found) >= limits.agreement else ""
    limit = f"limit {limits.agreement:g} %{few}"
    return [f"{found.agreement:.1f} % have the same predicted class ({limit})"]


def _low_sqnr(found: Parity | Quality, limits: QualityLimits) -> list[str]:
    if found.sqnr_db >= limits.sqnr_db:  # false for NaN
        return []
    return [f"the SQNR of the logits is {found.sqnr_db:.1f} dB (limit {limits.sqnr_db:g} dB)"]


def _changed(found: Parity | Quality) -> int:
    return round(found.images * (1 - found.agreement / 100))


def _few_images(manifest: Manifest) -> list[ExportWarning]:
    """Return a warning if the INT8 graphs were compared on too few images to be judged."""
    most = {
        artifact: max(found.images for found in export_figures(artifact))
        for artifact in manifest.artifacts
        if artifact.precision is Precision.INT8
    }
    few = [artifact for artifact, images in most.items() if images < FEWEST_IMAGES]
    if not few:
        return []
    count = plural(max(most[artifact] for artifact in few), "image")
    names = joined([with_use(artifact.name, artifact.encoding) for artifact in few])
    return [
        ExportWarning(
            message=f"{names}: compared with FP32 on no more than {count}, too few to "
            "show that the predictions agree",
            hint=f"use at least {4 * FEWEST_IMAGES} images, better 600: --calibration-data",
            artifacts=tuple(artifact.name for artifact in few),
        )
    ]


def action_text(remedy: Remedy) -> str:
    """Return what a remedy asks for, without a full stop; empty if the graph needs no action."""
    if not remedy.options and remedy.mixture is None:
        return ""
    exported = [option for option in remedy.options if option not in (QAT, IN_FLOAT)]
    added = [option for option in exported if not option.startswith("no ")]
    left_out = [option.removeprefix("no ") for option in exported if option.startswith("no ")]
    words = [f"with {' '.join(added)}"] if added else []
    words += [f"without {' '.join(left_out)}"] if left_out else []
    actions = [f"export another bundle {' and '.join(words)}{COMPARE}"] if words else []
    if QAT in remedy.options:
        command = "resdeploy train DATA --qat --init RUN"
        actions.append(f"train with simulated quantisation ({command}) and export the new run")
    return "; if that is not enough, ".join(actions or [IN_FLOAT])


def judged_images(images: int, origin: QualityOrigin) -> str:
    """Return the number of images that judged the INT8 graphs, and where they are from.

    They may be validation images, which chose the epoch in training.
    """
    if origin is QualityOrigin.CROSS_VALIDATION:
        return plural(images, "cross-validated image")
    return f"{plural(images, 'image')} not used by the calibration"


def _images(found: Parity | Quality, manifest: Manifest) -> str:
    if isinstance(found, Parity):
        return f"{found.images} {manifest.golden.kind} images"
    return judged_images(found.images, found.origin)


def _hint(
    artifact: Artifact, manifest: Manifest, doubts: Collection[str], remedy: Remedy | None
) -> str:
    if artifact.precision is not Precision.INT8:
        return "judge the graph on labelled images: resdeploy verify BUNDLE --data DIR"
    applies = remedy is not None and (
        remedy.encoding is artifact.encoding
        or (
            Encoding.DLA not in (remedy.encoding, artifact.encoding)
            and NO_INT8_SHORTCUTS not in remedy.options
        )
    )
    action = action_text(remedy) if remedy is not None and applies else ""
    actions = [action or _remedy(artifact, manifest), _alternative(manifest, doubts)]
    actions = [text for text in actions if text not in ("", IN_FLOAT)] or [IN_FLOAT]
    others = [a for a in manifest.artifacts if a.encoding is Encoding.CPU and a.name not in doubts]
    where = f"before you use it on a {_MACHINES[artifact.encoding]}, " if others else ""
    return where + ", or ".join(actions)


def _remedy(artifact: Artifact, manifest: Manifest) -> str:
    calibration = manifest.calibration or {}
    images, available = calibration.get("images", 0), calibration.get("available", 0)
    others = calibration.get("scoring_images", 0) + manifest.golden.images
    is_limited = images + others < available
    actions = [
        f"calibrate on more images like those to classify (now {images:,}) with "
        f"--calibration-{'images' if is_limited else 'data'}"
    ]
    if artifact.encoding is not Encoding.DLA:  # which no option keeps layers in float for
        actions.append(f"keep sensitive layers in float with {MIN_AGREEMENT}")
    if "learned" not in calibration.get("method", {}).values() and not manifest.is_graph:
        actions.append("train with --qat")
    return ", or ".join(actions)


def _alternative(manifest: Manifest, doubts: Collection[str]) -> str:
    """Return a clause about graphs in float, equal for all INT8 graphs; FP16 is slow on CPUs."""
    good = [a.precision for a in manifest.artifacts if a.name not in doubts]
    names = ["fp16 on a GPU"] * (Precision.FP16 in good) + ["fp32"] * (Precision.FP32 in good)
    return f"{IN_FLOAT} (--precision {' or '.join(names)})" if names else ""
