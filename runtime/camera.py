"""Classification of the frames of a camera or a video, with counts of dropped and lost frames.

A live camera does not wait: one thread reads every frame, the newest frame is classified, and the
other frames are dropped and counted. A video file waits, so that none of its frames is dropped.

Source: OpenCV, "Video I/O" (`VideoCapture`, its backends and properties).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resdeploy.errors import ImageError, needs_extra
from resdeploy.filesystem import check_file
from resdeploy.predictions import Prediction
from resdeploy.runtime.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# cv2.CAP_PROP_POS_MSEC and cv2.CAP_PROP_FPS
TIME_MS, FRAMES_PER_SECOND = 0, 5
VIDEO4LINUX_MAJOR = 81  # number of the devices /dev/video*; Linux, admin-guide/devices.txt
JOIN_TIMEOUT_SECONDS = 5.0
HINT = (
    "give a camera number, a device such as /dev/video0, a URL, a file, or a GStreamer pipeline "
    "that ends in appsink (OpenCV must be built with GStreamer)"
)


class Capture(Protocol):
    """The methods of `cv2.VideoCapture` that are used here."""

    def read(self) -> tuple[bool, Any]:
        """Return True if there is a next frame, and that frame, uint8 BGR (H, W, 3)."""
        ...

    def get(self, propId: int) -> float:
        """Return a property; 0 if it is unknown."""
        ...

    def release(self) -> None:
        """Release the camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraReport:
    """The final report of `resdeploy predict --camera`."""

    source: str
    captured: int
    """Number of frames that arrived: classified plus dropped."""
    classified: int
    dropped: int
    lost: int | None
    """Number of frames that never arrived, estimated from the timestamps of the others; None if
    the source has no timestamps."""
    seconds: float
    frames_per_second: float
    p50_ms: float
    """Median time from a frame in memory to its labels, in milliseconds."""
    labels: dict[str, int]
    """Number of frames for each predicted label, the most frequent first."""
    last: tuple[Prediction, ...]
    """Predictions for the last frame that was classified."""
    backend: str
    artifact: str
    schema: str = "resdeploy.camera/1"


@dataclass(slots=True)
class FrameReader:
    """A holder of the newest frame; one thread calls `read_frames`, another one `take`."""

    capture: Capture
    live: bool
    captured: int = 0
    times_ms: list[float] = field(default_factory=list)
    error: Exception | None = None
    _newest: Any = None
    _ended: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def read_frames(self) -> None:
        """Read frames until the source ends or fails, or until `stop` is called."""
        try:
            while self._store(*self.capture.read()):
                pass
        except Exception as error:  # OpenCV has error classes of its own
            self.error = error
        finally:
            self.stop()

    def _store(self, has_frame: bool, frame: Any) -> bool:
        with self._changed:
            # A video file waits until its previous frame was taken; a camera does not wait.
            self._changed.wait_for(lambda: self.live or self._newest is None or self._ended)
            if not has_frame or self._ended:
                return False
            self.captured += 1
            self.times_ms.append(self.capture.get(TIME_MS))
            self._newest = frame
            self._changed.notify_all()
            return True

    def take(self) -> Any:
        """Wait for a frame that was not taken yet and return it; None at the end of the source."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended)
            frame, self._newest = self._newest, None
            self._changed.notify_all()
            return frame

    def stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def open_capture(source: str) -> tuple[Capture, bool]:
    """Open a camera or a video; the second value is True if it is live.

    Raises:
        ImageError: The source cannot be opened.
        MissingDependencyError: OpenCV is not installed.
    """
    with needs_extra():
        import cv2
    pipeline = "!" in source
    if not (source.isdigit() or pipeline or "://" in source or _is_camera(Path(source))):
        check_file(Path(source), ImageError, HINT)  # OpenCV would wait for the writer of a FIFO
    capture = (
        cv2.VideoCapture(int(source))
        if source.isdigit()
        else cv2.VideoCapture(source, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
    )
    if not capture.isOpened():
        raise ImageError(f"the camera {source!r} cannot be opened", HINT)
    live = source.isdigit() or pipeline or source.startswith(("/dev/", "rtsp://", "http"))
    if live:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # not every backend of OpenCV supports it
    return capture, live


def _is_camera(path: Path) -> bool:
    with suppress(OSError):
        found = path.stat()
        return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == VIDEO4LINUX_MAJOR
    return False


def watch_camera(
    model: Model, source: str, *, frames: int | None, seconds: float | None, top: int
) -> CameraReport:
    """Open a source and classify its frames, as `classify_frames` does.

    Raises:
        BackendError: The engine failed.
        ImageError: The source cannot be opened, or it gives no frame.
        MissingDependencyError: OpenCV is not installed.
    """
    capture, live = open_capture(source)
    return classify_frames(
        model, capture, source=source, live=live, frames=frames, seconds=seconds, top=top
    )


def classify_frames(
    model: Model,
    capture: Capture,
    *,
    source: str,
    live: bool,
    frames: int | None = None,
    seconds: float | None = None,
    top: int = 5,
) -> CameraReport:
    """Classify frames until the source ends, a limit is reached, or the user presses CTRL-C.

    Every change of the predicted label is logged. `capture` is released at the end. The limits are
    the number of classified frames and the time in seconds; None for no limit. If the source is
    live, frames that arrive faster than they are classified are dropped.
    """
    reader = FrameReader(capture, live)
    thread = threading.Thread(target=reader.read_frames, name="camera", daemon=True)
    counts: Counter[str] = Counter()
    times: list[float] = []
    last: tuple[Prediction, ...] = ()
    start = time.perf_counter()
    thread.start()
    try:
        while (frames is None or len(times) < frames) and (
            seconds is None or time.perf_counter() - start < seconds
        ):
            if (frame := reader.take()) is None:
                break
            began = time.perf_counter()
            predictions = tuple(model.predict(to_picture(frame), top))
            times.append(1000 * (time.perf_counter() - began))
            best = predictions[0]
            if not last or best.label != last[0].label:
                logger.info(
                    "frame %d: %s (%.1f %%)", len(times), best.label, 100 * best.probability
                )
            counts[best.label] += 1
            last = predictions
    except KeyboardInterrupt:
        pass  # CTRL-C is the usual way to stop a camera; the report is still wanted
    finally:
        reader.stop()
        thread.join(JOIN_TIMEOUT_SECONDS)
        rate = capture.get(FRAMES_PER_SECOND)
        if not thread.is_alive():  # releasing a camera during a blocked read may crash
            capture.release()
    if not times:
        reason = f": {reader.error}" if reader.error else ""
        raise ImageError(f"the camera {source!r} gives no picture{reason}", HINT)
    if reader.error:
        logger.warning("%s failed after %d frames: %s", source, reader.captured, reader.error)
    elapsed = time.perf_counter() - start
    return CameraReport(
        source=source,
        captured=reader.captured,
        classified=len(times),
        dropped=reader.captured - len(times),
        lost=lost_frames(reader.times_ms, rate),
        seconds=elapsed,
        frames_per_second=len(times) / elapsed,
        p50_ms=float(np.median(times)),
        labels=dict(counts.most_common()),
        last=last,
        backend=model.backend.name,
        artifact=model.artifact.name,
    )


def to_picture(frame: Any) -> Image:
    """Convert a frame to an RGB image; raise ImageError if it is not uint8 BGR (H, W, 3)."""
    from PIL import Image

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ImageError(
            f"a frame is {frame.dtype} {frame.shape}, not uint8 (H, W, 3)",
            "end the pipeline with videoconvert ! video/x-raw,format=BGR ! appsink",
        )
    return Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))


def lost_frames(times_ms: list[float], rate: float) -> int | None:
    """Estimate the number of missing frames from the timestamps, in ms, of those that arrived.

    Return None if the rate, in frames per second, is unknown or the timestamps do not increase.
    """
    steps = np.diff(times_ms)
    if rate <= 0 or not len(steps) or steps.min() <= 0:
        return None
    return int(np.maximum(np.rint(steps * rate / 1000) - 1, 0).sum())
