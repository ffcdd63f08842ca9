"""resdeploy's quantisation in a process of its own, for `benchmarks.quantization`.

    python -m benchmarks.quantization.ours CHECKPOINT IMAGE_SIZE DATA IMAGES SEED FOLDER

The script writes both INT8 graphs to FOLDER and prints seconds of processor time and peak memory
as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.quantization.peers import print_usage, processor_seconds
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.inputs import read_source
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.compensation import with_rounded_weights
from resdeploy.progress import silent
from resdeploy.train.model.resnet import Classifier


def main(checkpoint: str, image_size: str, data: str, images: str, seed: str, folder: str) -> None:
    """Write the graphs as an export does; the time includes decoding the images."""
    source = read_source(Path(checkpoint), image_size=int(image_size), calibration_data=Path(data))
    preprocessing = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), preprocessing)
    model = to_onnx(classifier, preprocessing.image_size)
    start = processor_seconds()
    calibration = calibrate(
        model, source, calibrator="auto", images=int(images), seed=int(seed), golden_digests=(),
        progress=silent,
    )  # fmt: skip
    calibration = with_rounded_weights(calibration, silent)
    for encoding, recipe in calibration.recipes.items():
        Path(folder, f"{encoding.value}.onnx").write_bytes(
            to_bytes(recipe.apply(calibration.model))
        )
    print_usage(start)


if __name__ == "__main__":
    main(*sys.argv[1:])
