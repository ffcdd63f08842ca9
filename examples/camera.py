"""Classify the frames of a camera or a video, and print each change of the predicted class.

    pip install '.[cpu,camera]'
    python examples/camera.py r34.bundle 0

The source is the number of a camera, a file or a URL. `resdeploy predict --camera` also drops the
frames that a slow machine cannot classify in time, and counts them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2

import resdeploy


def main() -> None:
    """Classify frames until the source ends or the user presses Ctrl-C."""
    parser = argparse.ArgumentParser(description="Classify the frames of a camera.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("source", help="number of a camera, a file or a URL")
    options = parser.parse_args()

    source = int(options.source) if options.source.isdigit() else options.source
    capture, shown, frames, start = cv2.VideoCapture(source), "", 0, time.perf_counter()
    if not capture.isOpened():
        raise SystemExit(f"{options.source} cannot be opened")
    with resdeploy.load(options.bundle) as model:
        while True:
            has_frame, frame = capture.read()
            if not has_frame:
                break
            (best,) = model.predict(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), top=1)
            frames += 1
            if best.label != shown:
                shown = best.label
                print(f"frame {frames}: {shown} ({100 * best.probability:.0f} %)")
    capture.release()
    print(f"{frames} frames, {frames / (time.perf_counter() - start):.1f} per second")


if __name__ == "__main__":
    main()
