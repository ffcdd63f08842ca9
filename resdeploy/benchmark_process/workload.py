"""The workload that all contenders of a benchmark share: images in memory or picture files.

Shape letters: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from resdeploy.benchmark_process.worker_loop import StageTimes
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.images.decode import read_picture_file, read_rgb
from resdeploy.images.folder import list_images
from resdeploy.images.loading import resize_and_crop
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.predictions import top_predictions

TOP_CLASSES = 5
STAGES = ("decode", "resize", "copy", "inference", "post")
MAX_PICTURES = 256
JPEG_QUALITY = 90
Infer = Callable[[UInt8Array], Float32Array]
"""A function from images (N, H, W, 3) to logits (N, K), both in host memory."""


class BenchmarkMode(str, Enum):
    """The kind of call that a benchmark times."""

    STREAM = "stream"  # one image per call, for latency
    OFFLINE = "offline"  # large batches, for throughput
    END_TO_END = "end-to-end"  # from encoded picture files to labels


DEFAULT_BATCH = {BenchmarkMode.STREAM: 1, BenchmarkMode.OFFLINE: 8, BenchmarkMode.END_TO_END: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The bundle, batch size, threads and images of a contender."""

    bundle: Path
    batch: int
    threads: int
    pictures: Path | None = None
    """A folder of picture files; None for the decoded golden images in memory."""
    streams: int = 1
    """The equal parts of a batch that run at the same time and share the threads."""

    def to_arguments(self) -> list[str]:
        """Return the command-line arguments for a worker process."""
        numbers = [str(number) for number in (self.batch, self.threads, self.streams)]
        return [str(self.bundle), str(self.pictures or ""), *numbers]

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Workload:
        """Restore a workload from the result of `to_arguments`."""
        bundle, pictures, batch, threads, streams = arguments
        return cls(
            bundle=Path(bundle),
            batch=int(batch),
            threads=int(threads),
            pictures=Path(pictures) if pictures else None,
            streams=int(streams),
        )

    def make_call(self, bundle: Bundle, golden: UInt8Array, infer: Infer) -> Callable[[], object]:
        """Return the function to time: `infer` alone, or everything from files to labels.

        Args:
            bundle: The bundle with the pre-processing and the labels.
            golden: The golden images (N, H, W, 3) of the bundle.
            infer: The network.

        Raises:
            DataError: The folder has no pictures.
        """
        if self.pictures is not None:
            return self._call_from_files(bundle, infer, read_pictures(self.pictures))
        images = golden[np.arange(self.batch) % len(golden)]
        return lambda: infer(images)

    def _call_from_files(
        self, bundle: Bundle, infer: Infer, pictures: Sequence[bytes]
    ) -> Callable[[], StageTimes]:
        preprocessing, labels = bundle.manifest.preprocessing, bundle.labels()
        repeated = itertools.cycle(pictures)

        def run() -> StageTimes:
            files = list(itertools.islice(repeated, self.batch))
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
                top_predictions(row, labels, TOP_CLASSES)
            marks.append(time.perf_counter_ns())
            return StageTimes(zip(STAGES, np.diff(marks).tolist()))

        return run


def read_pictures(folder: Path) -> list[bytes]:
    """Return the content of the first `MAX_PICTURES` picture files below a folder.

    Raises:
        DataError: The folder has no picture files.
        ImageError: A file cannot be read.
    """
    return [read_picture_file(path) for path in list_images(folder)[:MAX_PICTURES]]


def write_pictures(bundle: Bundle, folder: Path) -> None:
    """Write the golden images as JPEG files."""
    from PIL import Image

    for number, pixels in enumerate(bundle.golden().images):
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=JPEG_QUALITY)
