"""What every contender of a benchmark does, from memory or from picture files: one definition.

Shape letters: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from resdeploy.bench.worker import StageTimes
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import DataError
from resdeploy.images.decode import SUFFIXES, read_rgb
from resdeploy.images.preprocessing import UInt8Array, resize_and_crop
from resdeploy.predictions import top_predictions

TOP = 5
STAGES = ("decode", "resize", "copy", "inference", "post")
MOST_PICTURES = 256
JPEG_QUALITY = 90
Infer = Callable[[UInt8Array], Float32Array]
"""Logits (N, K), in host memory, of images (N, H, W, 3) in host memory."""


class Mode(str, Enum):
    """What one run is."""

    STREAM = "stream"  # one call after the other, as latency is felt
    OFFLINE = "offline"  # large batches, for images a second
    END_TO_END = "end-to-end"  # from the bytes of picture files to labels


DEFAULT_BATCH = {Mode.STREAM: 1, Mode.OFFLINE: 8, Mode.END_TO_END: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The images of one run, and the threads for it."""

    bundle: Path
    batch: int
    threads: int
    pictures: Path | None = None
    """A folder of picture files to begin with; None for golden images, decoded, in memory."""

    def to_arguments(self) -> list[str]:
        """As a contender's process is told."""
        return [
            str(self.bundle),
            str(self.batch),
            str(self.threads),
            "" if self.pictures is None else str(self.pictures),
        ]

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Workload:
        """Inverse of `to_arguments`."""
        bundle, batch, threads, pictures = arguments
        return cls(
            bundle=Path(bundle),
            batch=int(batch),
            threads=int(threads),
            pictures=Path(pictures) if pictures else None,
        )

    def runner(self, bundle: Bundle, golden: UInt8Array, infer: Infer) -> Callable[[], object]:
        """What is timed: `infer` alone, or all from the bytes of pictures to labels.

        Args:
            bundle: What says how pictures are prepared, and the names of classes.
            golden: Its golden images, whose reading takes as long as some runs.
            infer: The network.

        Raises:
            DataError: there are no pictures.
        """
        if self.pictures is not None:
            return self._staged(bundle, infer, read_pictures(self.pictures))
        images = golden[np.arange(self.batch) % len(golden)]
        return lambda: infer(images)

    def _staged(
        self, bundle: Bundle, infer: Infer, pictures: Sequence[bytes]
    ) -> Callable[[], StageTimes]:
        preprocessing, labels = bundle.manifest.preprocessing, bundle.labels()
        endless = itertools.cycle(pictures)

        def run() -> StageTimes:
            files = list(itertools.islice(endless, self.batch))
            marks = [time.perf_counter_ns()]
            decoded = [read_rgb(file) for file in files]
            marks.append(time.perf_counter_ns())
            prepared = [resize_and_crop(image, preprocessing) for image in decoded]
            marks.append(time.perf_counter_ns())
            images = np.stack(prepared)
            marks.append(time.perf_counter_ns())
            logits = infer(images)
            marks.append(time.perf_counter_ns())
            for row in logits:
                top_predictions(row, labels, TOP)
            marks.append(time.perf_counter_ns())
            return StageTimes(zip(STAGES, np.diff(marks).tolist()))

        return run


def read_pictures(folder: Path) -> list[bytes]:
    """The content of the first `MOST_PICTURES` picture files below a folder.

    Raises:
        DataError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no pictures", f"name a folder of {', '.join(SUFFIXES)}")
    return [path.read_bytes() for path in files[:MOST_PICTURES]]


def write_pictures(bundle: Bundle, folder: Path) -> None:
    """The golden images as JPEG files."""
    from PIL import Image

    for number, pixels in enumerate(bundle.golden().images):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
        (folder / f"{number:03d}.jpg").write_bytes(stream.getvalue())
