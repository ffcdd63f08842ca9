"""Doubts about the accuracy of a bundle: their limits, their warnings and the text of warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from resdeploy.bundle.manifest import Artifact, ExportWarning, Manifest, Precision


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


def export_figures(artifact: Artifact, manifest: Manifest) -> ExportFigures:
    """Return the figures that the export measured for a graph."""
    parity = artifact.parity
    return ExportFigures(
        images=parity.images,
        agreement=parity.agreement,
        sqnr_db=parity.sqnr_db,
        measured_on=f"{parity.images} {manifest.golden.kind} images",
    )


def quality_warnings(manifest: Manifest) -> list[ExportWarning]:
    """Return a warning for each graph whose figures are below the limits of its precision."""
    figures = {artifact: export_figures(artifact, manifest) for artifact in manifest.artifacts}
    doubtful = [a for a in figures if figures[a].is_doubtful(LIMITS[a.precision])]
    good = [a for a in figures if a not in doubtful]
    order = list(Precision)
    better = max(good, key=lambda a: order.index(a.precision), default=None)
    alternative = _alternative(better, figures[better]) if better else ""
    return [
        ExportWarning(
            message=f"{artifact.name} deviates from FP32 on {found.measured_on}: agreement "
            f"{found.agreement:.1f} %, limit {limits.agreement:g} %; SQNR {found.sqnr_db:.1f} dB, "
            f"limit {limits.sqnr_db:g} dB",
            hint=_remedy(artifact, manifest) + alternative,
            artifacts=(artifact.name,),
        )
        for artifact in doubtful
        for found, limits in [(figures[artifact], LIMITS[artifact.precision])]
    ]


def relevant_warnings(manifest: Manifest, artifact: str) -> tuple[ExportWarning, ...]:
    """Return the warnings that concern one graph."""
    return tuple(w for w in manifest.warnings if not w.artifacts or artifact in w.artifacts)


def warning_lines(warnings: Iterable[ExportWarning]) -> list[str]:
    """Return the lines for a console: each warning, and a hint that several share only once."""
    lines = list[str]()
    by_hint: dict[str, list[str]] = {}
    for warning in warnings:
        by_hint.setdefault(warning.hint, []).append(warning.message)
    for hint, messages in by_hint.items():
        lines += [f"warning: {message}" for message in dict.fromkeys(messages)]
        lines += [f"  hint: {hint}"]
    return lines


def named_warnings(name: str, warnings: Sequence[ExportWarning]) -> list[ExportWarning]:
    """Return the warnings of one of several bundles, with its name before the message."""
    return [replace(warning, message=f"{name}: {warning.message}") for warning in warnings]


def _remedy(artifact: Artifact, manifest: Manifest) -> str:
    if artifact.precision is not Precision.INT8:
        return "install the versions in constraints.txt, and report the figures if they persist"
    images = (manifest.calibration or {}).get("images", 0)
    return (
        f"calibrate on more images like those to classify (--calibration-images, now {images}), "
        "keep sensitive layers in float with --min-agreement 98, or train with --qat"
    )


def _alternative(artifact: Artifact, figures: ExportFigures) -> str:
    option = "" if artifact.precision is Precision.INT8 else f": --precision {artifact.name}"
    return f"; {artifact.name} of this bundle agrees on {figures.agreement:.1f} %{option}"
