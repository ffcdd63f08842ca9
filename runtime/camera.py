"""Naming what a camera or a video shows, with an account of every frame.

A live camera does not wait: one thread takes every frame that it gives, and the newest one is
classified; the others are dropped, and counted. A file waits, so that none of its frames is.

Source: OpenCV, "Video I/O" (`VideoCapture`, its backends and properties).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resdeploy.errors import ImageError, needs_extra
from resdeploy.predictions import Prediction
from resdeploy.runtime.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# cv2.CAP_PROP_POS_MSEC and cv2.CAP_PROP_FPS
TIME_MS, FRAMES_PER_SECOND = 0, 5
PATIENCE_SECONDS = 5.0
HINT = (
    "name a number, a device such as /dev/video0, a URL, a file, or a GStreamer pipeline that ends "
    "in appsink, where OpenCV was built with it"
)


class Capture(Protocol):
    """What is asked of `cv2.VideoCapture`."""

    def read(self) -> tuple[bool, Any]:
        """Whether there is one, and the next frame, uint8 BGR (H, W, 3)."""
        ...

    def get(self, propId: int) -> float:
        """A property; 0 where it is not known."""
        ...

    def release(self) -> None:
        """Give the camera back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraReport:
    """What `resdeploy predict --camera` says at its end."""

    source: str
    captured: int
    """Frames that arrived: those that were classified, and those that were dropped."""
    classified: int
    dropped: int
    lost: int | None
    """Frames that never arrived, by the times of those that did; None where these are not told."""
    seconds: float
    frames_per_second: float
    """Classified."""
    p50_ms: float
    """From a frame in memory to its labels."""
    labels: dict[str, int]
    """Frames by their most likely label, the most frequent first."""
    last: tuple[Prediction, ...]
    """Of the last frame that was classified."""


@dataclass(slots=True)
class Watch:
    """The newest frame, and a count of all; filled by one thread, emptied by another."""

    capture: Capture
    live: bool
    captured: int = 0
    times_ms: list[float] = field(default_factory=list)
    error: Exception | None = None
    _newest: Any = None
    _ended: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def fill(self) -> None:
        """Read until the source ends or fails, or `stop` is called."""
        try:
            while self._store(*self.capture.read()):
                pass
        except Exception as error:  # OpenCV's own; whoever takes frames is told
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _store(self, there: bool, frame: Any) -> bool:
        with self._changed:
            # A file waits until its frame was taken; nothing waits for a camera.
            self._changed.wait_for(lambda: self.live or self._newest is None or self._ended)
            if not there or self._ended:
                return False
            self.captured += 1
            self.times_ms.append(self.capture.get(TIME_MS))
            self._newest = frame
            self._changed.notify_all()
            return True

    def take(self) -> Any:
        """The newest frame that was not taken yet; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended)
            frame, self._newest = self._newest, None
            self._changed.notify_all()
            return frame

    def stop(self) -> None:
        """Read no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def open_capture(source: str) -> tuple[Capture, bool]:
    """A camera or a video, and whether it is live.

    Raises:
        ImageError: it cannot be opened.
        MissingDependencyError: OpenCV is not installed.
    """
    with needs_extra():
        import cv2
    pipeline = "!" in source
    capture = (
        cv2.VideoCapture(int(source))
        if source.isdigit()
        else cv2.VideoCapture(source, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
    )
    if not capture.isOpened():
        raise ImageError(f"the camera {source!r} cannot be opened", HINT)
    live = source.isdigit() or pipeline or source.startswith(("/dev/", "rtsp://", "http"))
    if live:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # not every backend heeds it
    return capture, live


def watch_camera(
    model: Model, source: str, *, frames: int | None, seconds: float | None, top: int
) -> CameraReport:
    """Open a source and classify its frames; each new answer is logged.

    Raises:
        BackendError, ImageError, MissingDependencyError: see the two functions that do it.
    """
    capture, live = open_capture(source)
    shown = ""

    def seen(frame: int, predictions: tuple[Prediction, ...]) -> None:
        nonlocal shown
        best = predictions[0]
        if best.label != shown:
            logger.info("frame %d: %s (%.1f %%)", frame, best.label, 100 * best.probability)
            shown = best.label

    return classify_frames(
        model, capture, source=source, live=live, frames=frames, seconds=seconds, top=top, seen=seen
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
    seen: Callable[[int, tuple[Prediction, ...]], None] = lambda frame, predictions: None,
) -> CameraReport:
    """Classify until the source ends, a limit is reached, or the user stops it.

    Args:
        model: What names the frames.
        capture: Where they come from; it is released at the end.
        source: What the report calls it.
        live: Whether frames that come too fast are dropped.
        frames: Most to classify; None for all.
        seconds: Longest time; None for no limit.
        top: How many labels of each.
        seen: Told of each frame's number, from 1, and its labels.

    Raises:
        BackendError: the engine failed.
        ImageError: not one frame came.
    """
    watch = Watch(capture, live)
    reader = threading.Thread(target=watch.fill, name="camera", daemon=True)
    counts: Counter[str] = Counter()
    times: list[float] = []
    last: tuple[Prediction, ...] = ()
    start = time.perf_counter()
    reader.start()
    try:
        while (frames is None or len(times) < frames) and (
            seconds is None or time.perf_counter() - start < seconds
        ):
            if (frame := watch.take()) is None:
                break
            began = time.perf_counter()
            last = tuple(model.predict(to_picture(frame), top))
            times.append(1000 * (time.perf_counter() - began))
            counts[last[0].label] += 1
            seen(len(times), last)
    except KeyboardInterrupt:
        pass  # that is how a camera is stopped; the account is what was asked for
    finally:
        watch.stop()
        reader.join(PATIENCE_SECONDS)
        rate = capture.get(FRAMES_PER_SECOND)
        if not reader.is_alive():  # a camera that hangs in a call is left to the system
            capture.release()
    if not times:
        reason = f": {watch.error}" if watch.error else ""
        raise ImageError(f"the camera {source!r} gives no picture{reason}", HINT)
    if watch.error:
        logger.warning("%s failed after %d frames: %s", source, watch.captured, watch.error)
    elapsed = time.perf_counter() - start
    return CameraReport(
        source=source,
        captured=watch.captured,
        classified=len(times),
        dropped=watch.captured - len(times),
        lost=lost_frames(watch.times_ms, rate),
        seconds=elapsed,
        frames_per_second=len(times) / elapsed,
        p50_ms=float(np.median(times)),
        labels=dict(counts.most_common()),
        last=last,
    )


def to_picture(frame: Any) -> Image:
    """An RGB picture of Pillow's of a frame, uint8 BGR (H, W, 3).

    Raises:
        ImageError: it is another kind of frame.
    """
    from PIL import Image

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ImageError(
            f"a frame is {frame.dtype} {frame.shape}, not uint8 (H, W, 3)",
            "let a pipeline end in videoconvert ! video/x-raw,format=BGR ! appsink",
        )
    return Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))


def lost_frames(times_ms: list[float], rate: float) -> int | None:
    """Frames that are missing between others, by their times in milliseconds.

    None where the source has no rate, or its times do not move on.
    """
    steps = np.diff(times_ms)
    if rate <= 0 or not len(steps) or steps.min() <= 0:
        return None
    return int(np.maximum(np.rint(steps * rate / 1000) - 1, 0).sum())
