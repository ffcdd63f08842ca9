"""Classification of the frames of live cameras and video files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.predict import camera_text
from resdeploy.errors import ImageError, MissingDependencyError
from resdeploy.predictions import Prediction
from resdeploy.runtime import camera
from resdeploy.runtime.camera import (
    FRAMES_PER_SECOND,
    TIME_MS,
    CameraReport,
    Capture,
    classify_frames,
    lost_frames,
    open_capture,
    to_picture,
)
from resdeploy.runtime.model import Model, load
from tests.results import read_document
from tests.virtual_time import Clock

RATE = 200.0
TIMEOUT = 600.0
ENDLESS = 10**9


class FakeCapture:
    """A camera whose frames hold their number modulo 256."""

    def __init__(self, frames: int, *, skipped: int = 0, fails: bool = False) -> None:
        self.frames = frames
        self.skipped = skipped
        self.fails = fails
        self.number = 0
        self.released = False
        self._moved = threading.Condition()

    def read(self) -> tuple[bool, Any]:
        assert not self.released
        time.sleep(0.0005)  # let the other thread run
        with self._moved:
            self._moved.notify_all()
            if self.number == self.frames:
                if self.fails:
                    raise RuntimeError("unplugged")
                self.frames = 0
                return False, None
            self.number += 1
            return True, np.full((4, 4, 3), self.number % 256, np.uint8)

    def wait(self, frames: int) -> None:
        """Wait until `frames` more frames were read, or until the end of the source."""
        with self._moved:
            target = self.number + frames
            assert self._moved.wait_for(lambda: self.number >= target or not self.frames, TIMEOUT)

    def get(self, propId: int) -> float:
        if propId == FRAMES_PER_SECOND:
            return RATE
        assert propId == TIME_MS
        return 1000 / RATE * (self.number + (self.skipped if self.number > 2 else 0))

    def release(self) -> None:
        self.released = True


class SlowModel:
    """A model that records its frames; it takes 50 ms, while a live camera gives ten frames."""

    backend = SimpleNamespace(name="fake")
    artifact = SimpleNamespace(name="fp32")

    def __init__(
        self, clock: Clock, camera: FakeCapture | None = None, *, stop_at: int = 0
    ) -> None:
        self.clock = clock
        self.camera = camera
        self.stop_at = stop_at
        self.frames: list[int] = []

    def predict(self, picture: Any, top: int) -> list[Prediction]:
        self.clock.sleep(0.05)
        if self.camera:
            self.camera.wait(10)
        self.frames.append(picture.getpixel((0, 0))[0])
        if len(self.frames) == self.stop_at:
            raise KeyboardInterrupt
        label = "odd" if self.frames[-1] % 2 else "even"
        return [Prediction(label=label, index=0, probability=1.0)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A virtual clock for the time that the model takes."""
    clock = Clock()
    monkeypatch.setattr(camera, "time", clock)
    # On a busy machine threads end late.
    monkeypatch.setattr(camera, "JOIN_TIMEOUT_SECONDS", TIMEOUT)
    return clock


def classify(capture: FakeCapture, model: SlowModel, *, live: bool, **limits: Any) -> CameraReport:
    report = classify_frames(
        cast(Model, model), cast(Capture, capture), source="fake", live=live, **limits
    )
    assert capture.released
    assert report.classified == report.captured - report.dropped == sum(report.labels.values())
    return report


def test_a_file_drops_no_frames(clock: Clock) -> None:
    model = SlowModel(clock)
    report = classify(FakeCapture(30), model, live=False)
    assert model.frames == list(range(1, 31))
    assert (report.captured, report.classified, report.dropped, report.lost) == (30, 30, 0, 0)
    assert report.labels == {"odd": 15, "even": 15}
    assert report.last[0].label == "even"


def test_a_live_camera_drops_and_counts_frames(clock: Clock) -> None:
    capture = FakeCapture(60)
    model = SlowModel(clock, capture)
    report = classify(capture, model, live=True)
    assert report.captured == 60
    assert model.frames[-1] == 60  # the last frame is classified
    # Each is the newest frame; the tenth may not have arrived yet.
    assert all(later - earlier >= 9 for earlier, later in zip(model.frames, model.frames[1:-1]))
    assert report.dropped >= 50
    assert report.p50_ms == pytest.approx(50)
    assert report.frames_per_second == pytest.approx(20)


def test_counts_lost_frames_by_timestamps(clock: Clock) -> None:
    report = classify(FakeCapture(10, skipped=3), SlowModel(clock), live=False)
    assert (report.captured, report.lost) == (10, 3)
    assert "3 lost by the camera" in camera_text(report)


@pytest.mark.parametrize(
    ("times", "rate", "lost"),
    [
        ([0.0, 33.0, 67.0, 100.0], 30.0, 0),  # timestamps have jitter
        ([0.0, 33.0, 133.0], 30.0, 2),
        ([0.0, 33.0], 0.0, None),
        ([0.0, 0.0, 0.0], 30.0, None),
        ([5.0], 30.0, None),
    ],
)
def test_lost_frames(times: list[float], rate: float, lost: int | None) -> None:
    assert lost_frames(times, rate) == lost


@pytest.mark.parametrize("limit", [{"frames": 4}, {"seconds": 0.19}])
def test_limits(clock: Clock, limit: dict[str, Any]) -> None:
    report = classify(FakeCapture(ENDLESS), SlowModel(clock), live=True, **limit)
    assert report.classified == 4


def test_ctrl_c_ends_with_a_report(clock: Clock) -> None:
    report = classify(FakeCapture(ENDLESS), SlowModel(clock, stop_at=3), live=True)
    assert report.classified == 2
    assert report.dropped >= 1  # the interrupted frame


def test_a_camera_that_fails_ends_with_a_report(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    report = classify(FakeCapture(5, fails=True), SlowModel(clock), live=False)
    assert report.classified == 5
    assert "fake failed after 5 frames: unplugged" in caplog.text


@pytest.mark.parametrize(("fails", "reason"), [(False, "no picture"), (True, "picture: unplugged")])
def test_rejects_a_camera_without_frames(clock: Clock, fails: bool, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        classify(FakeCapture(0, fails=fails), SlowModel(clock), live=True)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 2))]
)
def test_rejects_frames_of_other_dtype_or_shape(frame: Any) -> None:
    with pytest.raises(ImageError, match="a frame is"):
        to_picture(frame)


def test_converts_bgr_to_rgb() -> None:
    frame = np.zeros((1, 1, 3), np.uint8)
    frame[..., 0] = 200
    assert to_picture(frame).getpixel((0, 0)) == (0, 0, 200)


# A real file


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames: first blue, then red."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "colours.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    assert writer.isOpened()
    for colour in 25 * [(220, 60, 30)] + 15 * [(40, 50, 220)]:
        writer.write(np.full((48, 64, 3), colour, np.uint8))
    writer.release()
    return path


def test_a_video_file(video: Path, tiny_bundle: Bundle) -> None:
    capture, live = open_capture(str(video))
    assert not live
    with load(tiny_bundle.path) as model:
        report = classify_frames(model, capture, source=str(video), live=live)
        blue = to_picture(np.full((48, 64, 3), (220, 60, 30), np.uint8))
        red = to_picture(np.full((48, 64, 3), (40, 50, 220), np.uint8))
        first, second = (model.predict(picture)[0].label for picture in (blue, red))
    assert (report.captured, report.classified, report.dropped, report.lost) == (40, 40, 0, 0)
    expected = {first: 40} if first == second else {first: 25, second: 15}
    assert report.labels == expected
    assert len(camera_text(report).splitlines()) == 3 + len(expected)


def test_the_command(video: Path, tiny_bundle: Bundle) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "resdeploy", "predict", tiny_bundle.path, "--camera", video,
            "--frames", "7", "--json",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert read_document(done.stdout)["classified"] == 7
    assert "frame 1: " in done.stderr


def test_rejects_a_source_that_cannot_be_opened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2")
    os.mkfifo(tmp_path / "pipe.avi")
    for source in (str(tmp_path / "none.avi"), "973", str(tmp_path / "pipe.avi"), "/dev/zero"):
        reason = r"cannot be (opened|read: No such file|read: it is not a regular file)"
        with pytest.raises(ImageError, match=reason) as caught:
            open_capture(source)
        assert re.search("/dev/video0|check the path", str(caught.value.hint))


def test_without_opencv_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_capture("0")
    assert "[camera]" in str(caught.value.hint)
