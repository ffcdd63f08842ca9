"""Doubts about the accuracy of a bundle: their limits, their warnings and the text of warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from resdeploy.bundle.manifest import (
    Artifact,
    ExportWarning,
    Manifest,
    Parity,
    Precision,
    Quality,
    QualityOrigin,
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFigures:
    """The agreement and SQNR that the export measured for one graph, and the images for it."""

    images: int
    agreement: float
    sqnr_db: float
    measured_on: str
    """Number and kind of the images."""

    def is_doubtful(self, limits: QualityLimits) -> bool:
        """Return True if a figure is below its limit.

        One image is not enough evidence: of 32 images, one with another class makes 96.9 %.
        """
        changed = round(self.images * (1 - self.agreement / 100))
        allowed = max(1.0, self.images * (1 - limits.agreement / 100))
        return changed > allowed or not self.sqnr_db >= limits.sqnr_db  # true for NaN


def export_figures(artifact: Artifact, manifest: Manifest) -> list[ExportFigures]:
    """Return the figures that the export measured for a graph, the most informative ones first."""
    golden = f"{artifact.parity.images} {manifest.golden.kind} images"
    measured: list[tuple[Parity | Quality, str]] = [(artifact.parity, golden)]
    if found := artifact.quality:
        by_folds = found.origin is QualityOrigin.CROSS_VALIDATION
        kind = "calibration images by cross-validation" if by_folds else "held-out images"
        measured.insert(0, (found, f"{found.images:,} {kind}"))
    return [
        ExportFigures(
            images=result.images,
            agreement=result.agreement,
            sqnr_db=result.sqnr_db,
            measured_on=images,
        )
        for result, images in measured
    ]


def quality_warnings(manifest: Manifest) -> list[ExportWarning]:
    """Return a warning for each graph whose figures are below the limits of its precision."""
    doubts: dict[str, ExportFigures] = {}
    for artifact in manifest.artifacts:
        limits = LIMITS[artifact.precision]
        doubtful = [f for f in export_figures(artifact, manifest) if f.is_doubtful(limits)]
        if doubtful:
            doubts[artifact.name] = doubtful[0]
    alternative = _alternative(manifest, doubts)
    return [
        ExportWarning(
            message=f"{artifact.name} deviates from FP32 on {found.measured_on}: agreement "
            f"{found.agreement:.1f} %, limit {limits.agreement:g} %; SQNR {found.sqnr_db:.1f} dB, "
            f"limit {limits.sqnr_db:g} dB{_better_figures(artifact, manifest, found)}",
            hint=_remedy(artifact, manifest) + alternative,
            artifacts=(artifact.name,),
        )
        for artifact in manifest.artifacts
        if artifact.name in doubts
        for found, limits in [(doubts[artifact.name], LIMITS[artifact.precision])]
    ]


def relevant_warnings(manifest: Manifest, artifact: str) -> tuple[ExportWarning, ...]:
    """Return the warnings that concern one graph."""
    return tuple(w for w in manifest.warnings if not w.artifacts or artifact in w.artifacts)


def grouped_by_hint(warnings: Iterable[ExportWarning]) -> list[tuple[tuple[str, ...], str]]:
    """Return each hint once, after the messages of all warnings that share it."""
    messages: dict[str, dict[str, None]] = {}
    for warning in warnings:
        messages.setdefault(warning.hint, {})[warning.message] = None
    return [(tuple(group), hint) for hint, group in messages.items()]


def warning_lines(warnings: Iterable[ExportWarning]) -> list[str]:
    """Return the lines of warnings for a console."""
    return [
        line
        for messages, hint in grouped_by_hint(warnings)
        for line in (*(f"warning: {message}" for message in messages), f"  hint: {hint}")
    ]


def named_warnings(name: str, warnings: Sequence[ExportWarning]) -> list[ExportWarning]:
    """Return the warnings of one of several bundles, with its name before the message."""
    return [replace(warning, message=f"{name}: {warning.message}") for warning in warnings]


def _better_figures(artifact: Artifact, manifest: Manifest, doubt: ExportFigures) -> str:
    """Return a clause with the agreement on more images, which did not raise the doubt."""
    first = export_figures(artifact, manifest)[0]
    if first == doubt:
        return ""
    return f" (agreement {first.agreement:.1f} % on {first.measured_on})"


def _remedy(artifact: Artifact, manifest: Manifest) -> str:
    if artifact.precision is not Precision.INT8:
        return "install the versions in constraints.txt, and report the figures if they persist"
    images = (manifest.calibration or {}).get("images", 0)
    return (
        f"calibrate on more images like those to classify (--calibration-images, now {images}), "
        "keep sensitive layers in float with --min-agreement 98, or train with --qat"
    )


def _alternative(manifest: Manifest, doubtful: Collection[str]) -> str:
    """Return a clause about the graph with the lowest precision of those without a doubt."""
    order = list(Precision)
    good = [artifact for artifact in manifest.artifacts if artifact.name not in doubtful]
    if not good:
        return ""
    better = max(good, key=lambda artifact: order.index(artifact.precision))
    option = "" if better.precision is Precision.INT8 else f": --precision {better.name}"
    agreement = export_figures(better, manifest)[0].agreement
    return f"; {better.name} of this bundle agrees on {agreement:.1f} %{option}"
