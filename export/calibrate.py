"""From calibration images to the ranges of one graph's tensors, for both encodings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from resdeploy.bundle import CALIBRATION, Encoding, Float32Array
from resdeploy.calibration.calibrators import CALIBRATORS, Calibrator
from resdeploy.calibration.ledger import Ledger, draw
from resdeploy.calibration.observer import observe
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.errors import CalibrationError
from resdeploy.export.placement import place
from resdeploy.export.qdq import insert_qdq
from resdeploy.export.source import Source
from resdeploy.export.to_onnx import to_bytes, with_outputs
from resdeploy.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.runtime.golden import run_batches
from resdeploy.runtime.onnxruntime_cpu import OnnxRuntimeCpu
from resdeploy.statistics import agreement_percent, sqnr_db

OBSERVATION_BATCH = 16
SCORING_IMAGES = 128
ENCODINGS = (Encoding.TENSORRT, Encoding.CPU)

Ranges = Mapping[str, Range]
"""By the tensor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a calibrator's ranges do on images that were not calibrated on, against FP32."""

    calibrator: str
    encoding: Encoding
    agreement: float
    """Images with the same most likely class, in percent."""
    sqnr_db: float
    """Median over the images."""
    sqnr_db_p5: float
    """The worst twentieth of the images."""

    @property
    def merit(self) -> tuple[float, float]:
        """What decides: usual and odd images count alike; then the answers themselves."""
        return self.sqnr_db + self.sqnr_db_p5, self.agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges for every quantised tensor of both encodings, and how they came about."""

    method: Mapping[Encoding, str]
    """The calibrator that was chosen."""
    ranges: Mapping[Encoding, Ranges]
    scores: tuple[Score, ...]
    """Of every calibrator that was tried; empty where there was nothing to choose."""
    digests: tuple[str, ...]
    """sha256 of the pixels of the images that were calibrated on."""
    scoring_images: int
    refused: Mapping[str, int]
    """Images that were passed over, by reason."""

    def to_bytes(self) -> bytes:
        """The content of `calibration.json`: all that is needed to quantise the graph again."""
        document = {
            encoding.value: {
                "calibrator": self.method[encoding],
                "ranges": {tensor: asdict(chosen) for tensor, chosen in ranges.items()},
            }
            for encoding, ranges in self.ranges.items()
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        return {
            "method": {encoding.value: name for encoding, name in self.method.items()},
            "images": len(self.digests),
            "scoring_images": self.scoring_images,
            "scores": [asdict(score) for score in self.scores],
            "refused": dict(self.refused),
            "scales_file": CALIBRATION,
        }


def require_images(source: Source) -> None:
    """Check before the long work that there will be something to calibrate on.

    Raises:
        CalibrationError: no images are known.
    """
    if not source.pools.calibration:
        raise CalibrationError(
            "INT8 needs images to calibrate on, and none are known for this checkpoint",
            "name a folder of typical images with --calibration-data",
        )


def calibrate(
    model: ir.Model,
    source: Source,
    *,
    calibrator: str,
    images: int,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
) -> Calibration:
    """Show `images` pictures to the FP32 graph and let calibrators choose the ranges.

    Args:
        model: The FP32 graph.
        source: Where the pictures come from.
        calibrator: A name in CALIBRATORS, the part of one before the hyphen for all of a family,
            or `auto` for all. Where there are several, each is scored on other pictures, and the
            best serves; each encoding has its own.
        images: Pictures to calibrate on.
        seed: Decides which.
        golden_digests: Pictures that must not be used.
        progress: Told of each batch.

    Raises:
        CalibrationError: there are no pictures, or none that can be used.
    """
    require_images(source)
    edges = [edge for encoding in ENCODINGS for edge in place(model.graph, encoding)]
    tensors = list(dict.fromkeys(edge.range_of for edge in edges))
    paths = draw(source.pools.calibration, seed)
    chosen = family(calibrator)
    spared = min(SCORING_IMAGES, len(paths) // 4) if len(chosen) > 1 else 0
    ledger = Ledger(source.preprocessing, wanted=images + spared, excluded=golden_digests)
    admitted = ledger.admit(paths, OBSERVATION_BATCH)
    scoring: list[UInt8Array] = []

    def batches() -> Iterator[UInt8Array]:
        missing = spared
        with progress("calibrating", min(images, len(paths) - spared)) as advance:
            for batch in admitted:
                scoring.append(batch[:missing])
                if len(rest := batch[missing:]):
                    yield rest
                    advance(len(rest))
                missing -= len(scoring[-1])

    statistics = observe(with_outputs(model, tensors), tensors, batches())
    scores = _score(model, statistics, chosen, np.concatenate(scoring), progress) if spared else ()
    method = {encoding: _best(scores, encoding, chosen) for encoding in ENCODINGS}
    return Calibration(
        method=method,
        ranges={
            encoding: choose_ranges(statistics, CALIBRATORS[name], encoding)
            for encoding, name in method.items()
        },
        scores=scores,
        digests=tuple(ledger.digests[spared:]),
        scoring_images=sum(map(len, scoring)),
        refused=ledger.refused,
    )


def family(calibrator: str) -> list[str]:
    """The names in CALIBRATORS that are meant by `auto`, a family's name, or a name."""
    if calibrator == "auto":
        return list(CALIBRATORS)
    return [name for name in CALIBRATORS if calibrator in (name, name.split("-")[0])]


def choose_ranges(
    statistics: Mapping[str, TensorStatistics], calibrator: Calibrator, encoding: Encoding
) -> Ranges:
    """The range of every tensor."""
    symmetric = encoding is Encoding.TENSORRT
    return {tensor: calibrator(seen, symmetric=symmetric) for tensor, seen in statistics.items()}


def _score(
    model: ir.Model,
    statistics: Mapping[str, TensorStatistics],
    calibrators: Sequence[str],
    images: UInt8Array,
    progress: Progress,
) -> tuple[Score, ...]:
    reference = _logits(model, Encoding.FLOAT, images)
    scores = []
    with progress("scoring", len(calibrators) * len(ENCODINGS)) as advance:
        for name in calibrators:
            for encoding in ENCODINGS:
                quantised = model.clone()
                ranges = choose_ranges(statistics, CALIBRATORS[name], encoding)
                # Float32 between the integers, which is faster on a CPU than float16 and differs
                # from it by far less than INT8 does.
                insert_qdq(quantised, place(quantised.graph, encoding), ranges, encoding)
                logits = _logits(quantised, encoding, images)
                ratios = sqnr_db(reference, logits)
                scores.append(
                    Score(
                        calibrator=name,
                        encoding=encoding,
                        agreement=agreement_percent(reference, logits),
                        sqnr_db=float(np.median(ratios)),
                        sqnr_db_p5=float(np.percentile(ratios, 5)),
                    )
                )
                advance(1)
    return tuple(scores)


def _logits(model: ir.Model, encoding: Encoding, images: UInt8Array) -> Float32Array:
    backend = OnnxRuntimeCpu(to_bytes(model), encoding)
    logits = run_batches(backend, images, OBSERVATION_BATCH)
    backend.close()
    return logits


def _best(scores: Sequence[Score], encoding: Encoding, chosen: Sequence[str]) -> str:
    """The calibrator of highest merit; without scores the first one."""
    own = [score for score in scores if score.encoding is encoding]
    return max(own, key=lambda score: score.merit).calibrator if own else chosen[0]
