"""From calibration images to the ranges of one graph's tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from resdeploy.bundle import CALIBRATION, Encoding
from resdeploy.calibration.ledger import Ledger, draw
from resdeploy.calibration.observer import observe
from resdeploy.calibration.ranges import CALIBRATORS, Range
from resdeploy.errors import CalibrationError
from resdeploy.export.placement import place
from resdeploy.export.source import Source
from resdeploy.export.to_onnx import with_outputs
from resdeploy.preprocessing import UInt8Array
from resdeploy.progress import Progress

OBSERVATION_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges for every quantised tensor of both encodings, and how they came about."""

    method: str
    ranges: Mapping[str, Range]
    digests: tuple[str, ...]
    """sha256 of the pixels of the images that were used."""
    refused: Mapping[str, int]
    """Images that were passed over, by reason."""

    def to_bytes(self) -> bytes:
        """The content of `calibration.json`: all that is needed to quantise the graph again."""
        document = {
            "method": self.method,
            "ranges": {tensor: asdict(chosen) for tensor, chosen in self.ranges.items()},
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        return {
            "method": self.method,
            "images": len(self.digests),
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
    """Show `images` pictures to the FP32 graph and let `calibrator` choose the ranges.

    Raises:
        CalibrationError: there are no pictures, or none that can be used.
    """
    require_images(source)
    edges = [
        edge for kind in (Encoding.TENSORRT, Encoding.CPU) for edge in place(model.graph, kind)
    ]
    tensors = list(dict.fromkeys(edge.range_of for edge in edges))
    ledger = Ledger(source.preprocessing, wanted=images, excluded=golden_digests)
    paths = draw(source.pools.calibration, seed)

    def batches() -> Iterator[UInt8Array]:
        with progress("calibrating", min(images, len(paths))) as advance:
            for batch in ledger.admit(paths, OBSERVATION_BATCH):
                yield batch
                advance(len(batch))

    statistics = observe(with_outputs(model, tensors), tensors, batches())
    choose = CALIBRATORS[calibrator]
    return Calibration(
        method=calibrator,
        ranges={tensor: choose(seen) for tensor, seen in statistics.items()},
        digests=tuple(ledger.digests),
        refused=ledger.refused,
    )
