"""Doubts about the accuracy of a bundle: their limits, their warnings and the text of warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

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
# golden images cannot show 99 %, so the SQNR counts, too.
ENOUGH_AGREEMENT, ENOUGH_SQNR_DB = 99.0, 30.0
MIN_AGREEMENT = f"--min-agreement {ENOUGH_AGREEMENT:g}"
# Fewer images may all agree, with a probability above 5 %, although one prediction in ten changes.
FEWEST_IMAGES = 29


def export_figures(artifact: Artifact) -> list[Parity | Quality]:
    """Return the figures that the export measured for a graph, the most informative ones first."""
    return [artifact.parity] if artifact.quality is None else [artifact.quality, artifact.parity]


def quality_warnings(manifest: Manifest) -> list[ExportWarning]:
    """Return a warning for each graph whose figures are below the limits of its precision."""
    doubts: dict[str, str] = {}
    for artifact in manifest.artifacts:
        limits = LIMITS[artifact.precision]
        first, *others = export_figures(artifact)
        figures = [(first, _figures_below(first, limits))]
        figures += [(found, _figures_surely_below(found, limits)) for found in others]
        for found, below in figures:
            if below and artifact.name not in doubts:
                images = _images(found, manifest)
                doubts[artifact.name] = f"deviates from FP32 on {images}: {'; '.join(below)}"
    return _few_images(manifest) + [
        ExportWarning(
            message=f"{with_use(artifact.name, artifact.encoding)} {doubts[artifact.name]}",
            hint=_remedy(artifact, manifest) + _alternative(artifact, manifest, doubts),
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
    from resdeploy.changed_predictions import CONFIDENCE, highest_rate  # needs numpy

    agreeing = golden.images - _changed(golden)
    highest = 100 * highest_rate(agreeing, golden.images, CONFIDENCE)
    return _low_agreement(golden, limits, highest < limits.agreement) + _low_sqnr(golden, limits)


def _low_agreement(found: Parity | Quality, limits: QualityLimits, is_low: bool) -> list[str]:
    same = f"{found.agreement:.1f} % have the same predicted class (limit {limits.agreement:g} %)"
    return [same] if is_low else []


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


def judged_images(images: int, origin: QualityOrigin) -> str:
    """Return the number of images that judged the INT8 graphs, and where they are from.

    They may be validation images, which chose the epoch in training.
    """
    cross_validated = origin is QualityOrigin.CROSS_VALIDATION
    source = "by cross-validation" if cross_validated else "not used by the calibration"
    return f"{images:,} image{'s' * (images != 1)} {source}"


def _images(found: Parity | Quality, manifest: Manifest) -> str:
    if isinstance(found, Parity):
        return f"{found.images} {manifest.golden.kind} images"
    return judged_images(found.images, found.origin)


def _remedy(artifact: Artifact, manifest: Manifest) -> str:
    if artifact.precision is not Precision.INT8:
        return "judge the graph on labelled images: resdeploy verify BUNDLE --data DIR"
    calibration = manifest.calibration or {}
    actions = [
        "calibrate on more images like those to classify "
        f"(now {calibration.get('images', 0)}) with --calibration-data"
    ]
    if artifact.encoding is not Encoding.DLA:  # which no option keeps layers in float for
        actions.append(f"keep sensitive layers in float with {MIN_AGREEMENT}")
    if "learned" not in calibration.get("method", {}).values() and not manifest.is_graph:
        actions.append("train with --qat")
    return ", or ".join(actions)


def _alternative(doubtful: Artifact, manifest: Manifest, doubts: Collection[str]) -> str:
    """Return a clause about a float graph for the same machines; FP16 is slower on CPUs."""
    is_cpu = doubtful.encoding is Encoding.CPU
    wanted = (Precision.FP32,) if is_cpu else (Precision.FP16, Precision.FP32)
    good = [a for a in manifest.artifacts if a.name not in doubts and a.precision in wanted]
    if not good:
        return ""
    better = min(good, key=lambda artifact: wanted.index(artifact.precision))
    found = export_figures(better)[0]
    share = f"{found.agreement:.1f} % of {_images(found, manifest)}"
    # FP32 is compared with PyTorch, all others also with FP32.
    is_fp32 = better.precision is Precision.FP32
    reference = manifest.golden.reference_name if is_fp32 else "FP32"
    return (
        f", or use {better.file} (--precision {better.name}), which predicts {reference}'s class "
        f"for {share}"
    )
