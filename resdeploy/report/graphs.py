"""Report section of the graphs of a bundle: their use, their agreement with FP32, their latency."""

from __future__ import annotations

from resdeploy.bundle.calibration_record import CalibrationRecord
from resdeploy.bundle.manifest import Artifact, Manifest, Quality, QualityOrigin
from resdeploy.bundle.quality import judged_images
from resdeploy.pages.blocks import Table
from resdeploy.statistics import wilson_interval
from resdeploy.tables import NONE, joined, percentage, plural, two_digits

USES = {
    "fp32": "any machine (reference)",
    "fp16": "GPUs",
    "int8": "NVIDIA GPUs (TensorRT)",
    "int8-cpu": "CPUs",
    "int8-dla": "DLA of a Jetson",
}
SQNR_TEXT = (
    "SQNR: signal-to-quantisation-noise ratio of the logits, the network's outputs; 20 dB is a "
    "noise of 1 % of the signal's power, 40 dB of 0.01 %."
)


def export_summary(manifest: Manifest, name: str = "") -> list[str]:
    """Return a sentence with the agreement of each graph for each set of images.

    `name` is that of the bundle, if the page is about several ones.
    """
    begin = f"At the export of {name}" if name else "At the export"
    judged = {a.file: a.quality for a in manifest.artifacts if a.quality is not None}
    others = {a.file: a.parity.agreement for a in manifest.artifacts if a.file not in judged}
    golden, sentences = manifest.golden, []
    if judged:
        qualities = {file: quality.agreement for file, quality in judged.items()}
        quality = next(iter(judged.values()))
        images = judged_images(quality.images, quality.origin)
        sentences.append(f"{begin}, {_agreement(qualities, 'FP32', images)}.")
    if others:
        images = plural(golden.images, f"{golden.kind} image")
        note = {
            "golden": " The bundle stores these images with their results, to check any machine.",
            "synthetic": " Synthetic images check the arithmetic, not the accuracy.",
        }[golden.kind]
        sentences.append(f"{begin}, {_agreement(others, golden.reference_name, images)}.{note}")
    return sentences


def graph_blocks(
    manifest: Manifest, record: CalibrationRecord | None, *, timed: bool = False
) -> tuple[Table, ...]:
    """Return tables of the files, of the INT8 graphs on other images, and of the golden images.

    If the page has other latencies (`timed`), those of the export are left out.
    """
    judged = [artifact for artifact in manifest.artifacts if artifact.quality is not None]
    tables = [_files(manifest, None if timed else record)]
    if judged:
        tables.append(_other_images(judged))
    return (*tables, _golden_images(manifest, explained=bool(judged)))


def _agreement(shares: dict[str, float], reference: str, images: str) -> str:
    """Return which graphs had the same predicted class as `reference` for which share of images."""
    files: dict[str, list[str]] = {}
    for file, share in shares.items():
        files.setdefault("all" if share == 100 else percentage(share, 2), []).append(file)
    groups = [f"{joined(names)} for {part}" for part, names in files.items()]
    ((part, names), *_), rest = files.items(), "; ".join(["", *groups[1:]])
    return (
        f"{joined(names)} predicted the same class as {reference} for {part} of the {images}{rest}"
    )


def _files(manifest: Manifest, record: CalibrationRecord | None) -> Table:
    latencies = {
        point.encoding: f"{point.p50_ms:.2f} ms"
        for point in (record.points if record else ())
        if point.chosen and point.p50_ms is not None
    }

    def latency(artifact: Artifact) -> str:
        known = artifact.name in ("fp32", "int8-cpu")
        return latencies.get(artifact.encoding, NONE) if known else NONE

    caption = (
        "Files of the bundle. All are the same network; the arithmetic decides where each is fast."
    )
    if latencies:
        caption += (
            " Latency: median for one image in ONNX Runtime on all cores of the CPU of the export, "
            "a short measurement during the export, which other programs can make several times "
            "too long (resdeploy bench is precise); graphs for other machines are not timed."
        )
    return Table(
        caption=f"{caption} INT8 layers: convolutions that compute in INT8.",
        head=("graph", "made for", *(("latency",) if latencies else ()), "size", "INT8 layers"),
        rows=tuple(
            (
                artifact.file,
                USES.get(artifact.name, NONE),
                *((latency(artifact),) if latencies else ()),
                f"{artifact.bytes / 1e6:.1f} MB",
                f"{artifact.int8_convs} of {artifact.convs}",
            )
            for artifact in manifest.artifacts
        ),
    )


def _other_images(artifacts: list[Artifact]) -> Table:
    qualities = [(a.file, a.quality) for a in artifacts if a.quality is not None]
    first = qualities[0][1]
    independent = (
        "Each fifth of them was judged with the ranges that the other images give"
        if first.origin is QualityOrigin.CROSS_VALIDATION
        else "These figures are what to expect of new images of the same kind"
    )
    return Table(
        caption=f"INT8 graphs on {judged_images(first.images, first.origin)}. {independent}. "
        "Agreement: share of the images with the same predicted class as FP32, with its "
        "two-sided 95 % confidence interval. "
        f"{SQNR_TEXT} The median is shown.",
        head=("graph", "agreement", "95 % interval", "SQNR"),
        rows=tuple(
            (
                file,
                percentage(quality.agreement, 2),
                _interval(quality),
                f"{quality.sqnr_db:.1f} dB",
            )
            for file, quality in qualities
        ),
    )


def _interval(quality: Quality) -> str:
    agreeing = round(quality.agreement * quality.images / 100)
    low, high = wilson_interval(agreeing, quality.images)
    return f"{low:.2f} to {high:.2f}"


def _golden_images(manifest: Manifest, *, explained: bool) -> Table:
    golden = manifest.golden
    words = (
        "Agreement and SQNR: as above"
        if explained
        else f"Agreement: share with the same predicted class. {SQNR_TEXT} The median is shown"
    )
    return Table(
        caption=f"All graphs on {golden.described}. The bundle stores these images with the logits "
        f"of {golden.reference_name} in FP32, with which each graph in ONNX Runtime on a CPU is "
        "compared. They check the arithmetic; so few images do not show the accuracy. "
        f"{words}; p5: the 5th percentile over the images. Largest error: largest difference of a "
        "logit.",
        head=("graph", "agreement", "SQNR", "SQNR p5", "largest error"),
        rows=tuple(
            (
                artifact.file,
                percentage(artifact.parity.agreement, 2),
                f"{artifact.parity.sqnr_db:.1f} dB",
                f"{artifact.parity.sqnr_db_p5:.1f} dB",
                two_digits(artifact.parity.max_error),
            )
            for artifact in manifest.artifacts
        ),
    )
