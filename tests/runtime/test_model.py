"""Loading a bundle: only what gives PyTorch's answers may serve."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, BundleError, ImageError
from resdeploy.predictions import softmax
from resdeploy.runtime import load
from resdeploy.runtime.backends import registry as selection
from resdeploy.runtime.model import predict_files
from tests.fakes import GoldenBackend, make_engine
from tests.samples import CLASSES, SIZE


def test_the_fastest_that_verifies_serves(tiny_bundle: Bundle) -> None:
    with load(tiny_bundle.path) as model:
        assert model.artifact.name == "int8-cpu"
        assert model.labels == CLASSES
        golden = tiny_bundle.golden()
        assert (model.run(golden.images).argmax(1) == golden.logits.argmax(1)).mean() > 0.8


def test_a_precision_is_respected(tiny_bundle: Bundle) -> None:
    with load(str(tiny_bundle.path), precision="fp16", threads=1) as model:
        assert model.artifact.name == "fp16"


def test_an_engine_that_computes_nonsense_is_passed_over(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[GoldenBackend] = []
    engines = (
        make_engine("broken", ("fp16",), factor=-1.0, opened=opened.append),
        make_engine("refusing", ("fp16",), fails=True),
        make_engine("good", ("fp32",), opened=opened.append),
    )
    monkeypatch.setattr(selection, "ENGINES", engines)
    with caplog.at_level(logging.WARNING, "resdeploy"), load(tiny_bundle.path) as model:
        assert model.artifact.name == "fp32"
        assert [backend.closed for backend in opened] == [True, False]
    assert opened[1].closed
    assert "broken gives other answers than PyTorch with fp16" in caplog.text
    assert "refusing cannot run fp16: it does not want to" in caplog.text


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 1.1])
def test_nothing_is_served_when_nothing_verifies(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(selection, "ENGINES", (make_engine(factor=factor),))
    with pytest.raises(BackendError, match="no backend gives PyTorch's answers") as caught:
        load(tiny_bundle.path)
    assert "resdeploy verify" in str(caught.value.hint)


def test_a_changed_graph_is_not_served(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    data = bytearray((copy / "int8-cpu.onnx").read_bytes())
    data[1000] ^= 1
    (copy / "int8-cpu.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        load(copy)


# Predictions


def test_predictions_are_sorted_and_add_up(tiny_bundle: Bundle, image_data: Path) -> None:
    with load(tiny_bundle.path) as model:
        predictions = model.predict(image_data / "val" / "red" / "000.png")
    assert len(predictions) == 3
    probabilities = [prediction.probability for prediction in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert all(prediction.label == CLASSES[prediction.index] for prediction in predictions)


def test_paths_bytes_and_pictures_give_the_same(tiny_bundle: Bundle, image_data: Path) -> None:
    path = image_data / "val" / "red" / "000.png"
    with load(tiny_bundle.path) as model, Image.open(path) as picture:
        answers = [model.predict(image) for image in (path, str(path), path.read_bytes(), picture)]
    assert all(answer == answers[0] for answer in answers)


def test_fewer_are_given_when_asked(tiny_bundle: Bundle, image_data: Path) -> None:
    path = image_data / "val" / "red" / "000.png"
    with load(tiny_bundle.path) as model:
        (file,) = predict_files(model, [path], top=1)
    assert file.image == path
    assert len(file.predictions) == 1


def test_a_damaged_picture_is_an_error(tiny_bundle: Bundle) -> None:
    with load(tiny_bundle.path) as model, pytest.raises(ImageError):
        model.predict(b"not a picture")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE + 1, SIZE, 3), np.uint8),
    ],
    ids=["float", "NCHW", "no batch", "empty", "size"],
)
def test_wrong_arrays_are_a_value_error(tiny_bundle: Bundle, images: np.ndarray) -> None:
    with load(tiny_bundle.path) as model, pytest.raises(ValueError, match="the model takes uint8"):
        model.run(images)


def test_a_view_that_is_not_contiguous_is_fine(tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images
    with load(tiny_bundle.path) as model:
        flipped = model.run(images[:, :, ::-1])
        np.testing.assert_array_equal(flipped, model.run(images[:, :, ::-1].copy()))


def test_softmax_of_large_logits_is_finite() -> None:
    probabilities = softmax(np.array([1000.0, 1000.0, -1000.0], np.float32))
    assert probabilities == pytest.approx([0.5, 0.5, 0.0])
