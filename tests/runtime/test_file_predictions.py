"""Classification of files in batches, with threads that decode."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.predict import predictions_text, report_text
from resdeploy.errors import ImageError
from resdeploy.runtime import Model, load, picture_inference
from resdeploy.runtime.file_predictions import (
    FilePredictions,
    classify_files,
    predict_files,
)
from resdeploy.runtime.picture_inference import BATCHES_AHEAD, ORDINARY_MEMORY
from resdeploy.runtime.picture_sources import PictureSource
from tests.samples import SIZE


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> Iterator[Model]:
    with load(tiny_bundle.path, "onnxruntime-cpu", threads=1) as opened:
        yield opened


def test_files_are_classified_in_order_past_broken_ones(
    model: Model, image_data: Path, tmp_path: Path
) -> None:
    good = sorted((image_data / "val").rglob("*.png"))
    (tmp_path / "bad.jpg").write_bytes(good[0].read_bytes()[:50])
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black.png")
    names = [tmp_path / "bad.jpg", *good[:10], tmp_path / "none.png", tmp_path / "black.png"]
    files: list[FilePredictions] = []
    report = predict_files(model, names, [files.append])
    assert [file.path for file in files] == names
    bad, first, *_, missing, black = files
    assert list(first.predictions) == model.predict(good[0])
    assert "bad.jpg cannot be decoded: " in str(bad.error)
    assert "none.png cannot be read: No such file" in str(missing.error)
    assert first.error is black.error is None
    assert not bad.predictions
    assert not missing.predictions
    assert (first.single_colour, black.single_colour) == (False, True)
    assert "black.png: its pixels are all equal" in predictions_text(black)
    assert (report.images, report.failed, report.first_failed) == (11, 2, names[0])
    assert f"2 of 13 images could not be classified; the first: {names[0]}" in report_text(report)
    brief = dataclasses.replace(report, seconds=0.019)
    assert report_text(brief).startswith("11 images in 19 ms (")


def test_a_folder_of_which_nothing_can_be_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"text")
    (tmp_path / ".DS_Store").touch()
    report = predict_files(model, [tmp_path, "none*.png"])
    assert (report.images, report.failed, report.skipped) == (0, 2, 1)
    assert report.images_per_second == 0


def test_few_pictures_are_in_memory_however_many_there_are(model: Model, image_data: Path) -> None:
    picture = PictureSource(image_data / "val" / "red" / "000.png")
    taken = 0

    def endless() -> Iterator[PictureSource]:
        nonlocal taken
        while True:
            taken += 1
            yield picture

    answers = classify_files(model, endless())
    for _ in range(5 * model.batch):
        next(answers)
    assert taken <= (5 + BATCHES_AHEAD) * model.batch
    answers.close()  # type: ignore[attr-defined]  # of a generator
    assert not [t for t in threading.enumerate() if t.name.startswith("decoder")]


def test_large_pictures_are_decoded_one_at_a_time(
    model: Model, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = most = 0
    lock = threading.Lock()

    def decode(path: Path, preprocessing: Any, limits: Any) -> Any:
        nonlocal running, most
        limits.admit(1, ORDINARY_MEMORY + 1)
        with lock:
            running += 1
            most = max(most, running)
        pixels = model.preprocess(path)
        with lock:
            running -= 1
        if path.name == "001.png":
            raise ImageError("is odd", "mend it")  # the next one must not wait for it
        return pixels

    monkeypatch.setattr(picture_inference, "load_image", decode)
    monkeypatch.setattr(picture_inference, "available_cores", lambda: 4)
    report = predict_files(model, [image_data / "val"])
    assert (report.images, report.failed, most) == (21, 3, 1)
