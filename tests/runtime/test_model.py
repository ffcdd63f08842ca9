"""Loading of a bundle with a backend that passes the golden check, and its predictions."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.predict import predictions_text
from resdeploy.errors import BackendError, BundleError, ImageError
from resdeploy.predictions import softmax
from resdeploy.runtime import load
from resdeploy.runtime.backends import registry
from resdeploy.runtime.model import predict_files
from tests.fakes import GoldenBackend, make_engine
from tests.samples import CLASSES, SIZE


def test_loads_the_fastest_verified_artifact(tiny_bundle: Bundle) -> None:
    with load(tiny_bundle.path) as model:
        assert model.artifact.name == "int8-cpu"
        assert model.labels == CLASSES
        golden = tiny_bundle.golden()
        assert (model.run(golden.images).argmax(1) == golden.logits.argmax(1)).mean() > 0.8


def test_loads_the_chosen_precision(tiny_bundle: Bundle) -> None:
    with load(str(tiny_bundle.path), precision="fp16", threads=1) as model:
        assert model.artifact.name == "fp16"


def test_skips_backends_that_fail_the_golden_check(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[GoldenBackend] = []
    engines = (
        make_engine("broken", ("fp16",), factor=-1.0, opened=opened.append),
        make_engine("failing", ("fp16",), fails=True),
        make_engine("good", ("fp32",), opened=opened.append),
    )
    monkeypatch.setattr(registry, "ENGINES", engines)
    with caplog.at_level(logging.WARNING, "resdeploy"), load(tiny_bundle.path) as model:
        assert model.artifact.name == "fp32"
        assert [backend.closed for backend in opened] == [True, False]
    assert opened[1].closed
    assert "broken does not reproduce PyTorch's logits with fp16" in caplog.text
    assert "failing cannot run fp16: it cannot be opened" in caplog.text


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 1.1])
def test_fails_if_no_backend_passes_the_golden_check(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(factor=factor),))
    with pytest.raises(BackendError, match="no backend reproduces PyTorch's logits") as caught:
        load(tiny_bundle.path)
    assert "resdeploy verify" in str(caught.value.hint)


def test_rejects_a_changed_graph(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    data = bytearray((copy / "int8-cpu.onnx").read_bytes())
    data[1000] ^= 1
    (copy / "int8-cpu.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        load(copy)


# Predictions


def test_predictions_are_sorted_and_sum_to_one(tiny_bundle: Bundle, image_data: Path) -> None:
    with load(tiny_bundle.path) as model:
        predictions = model.predict(image_data / "val" / "red" / "000.png")
    assert len(predictions) == 3
    probabilities = [prediction.probability for prediction in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert all(prediction.label == CLASSES[prediction.index] for prediction in predictions)


def test_paths_bytes_and_images_give_equal_predictions(
    tiny_bundle: Bundle, image_data: Path
) -> None:
    path = image_data / "val" / "red" / "000.png"
    with load(tiny_bundle.path) as model, Image.open(path) as picture:
        results = [model.predict(image) for image in (path, str(path), path.read_bytes(), picture)]
    assert all(result == results[0] for result in results)


def test_top_limits_the_predictions(tiny_bundle: Bundle, image_data: Path) -> None:
    path = image_data / "val" / "red" / "000.png"
    with load(tiny_bundle.path) as model:
        (file,) = predict_files(model, [path], top=1)
    assert file.image == path
    assert len(file.predictions) == 1


def test_a_damaged_file_does_not_stop_the_others(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = image_data / "val" / "red" / "000.png"
    (tmp_path / "bad.jpg").write_bytes(good.read_bytes()[:50])
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black.png")
    paths = [tmp_path / "bad.jpg", good, tmp_path / "none.png", tmp_path / "black.png"]
    with load(tiny_bundle.path) as model, caplog.at_level(logging.WARNING, "resdeploy"):
        bad, first, missing, black = predict_files(model, paths)
        assert list(first.predictions) == model.predict(good)
    assert [file.image for file in (bad, first, missing, black)] == paths
    assert "bad.jpg cannot be decoded: " in str(bad.error)
    assert "none.png cannot be read: No such file" in str(missing.error)
    assert first.error is black.error is None
    assert not bad.predictions
    assert not missing.predictions
    assert (first.single_colour, black.single_colour) == (False, True)
    assert "black.png: its pixels are all equal" in predictions_text([first, black])
    assert "bad.jpg cannot be decoded" in caplog.text


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "L", "RGBA", "I;16"])
def test_rejects_an_image_of_pillow_that_is_not_rgb(tiny_bundle: Bundle, mode: str) -> None:
    with load(tiny_bundle.path) as model, pytest.raises(ValueError, match=f"mode {mode}; convert"):
        model.predict(Image.new(mode, (SIZE, SIZE)))


def test_rejects_a_damaged_image(tiny_bundle: Bundle) -> None:
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
def test_rejects_arrays_of_other_dtype_or_shape(tiny_bundle: Bundle, images: np.ndarray) -> None:
    with load(tiny_bundle.path) as model, pytest.raises(ValueError, match="the model takes uint8"):
        model.run(images)


def test_accepts_a_non_contiguous_view(tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images
    with load(tiny_bundle.path) as model:
        flipped = model.run(images[:, :, ::-1])
        np.testing.assert_array_equal(flipped, model.run(images[:, :, ::-1].copy()))


def test_softmax_of_large_logits_is_finite() -> None:
    probabilities = softmax(np.array([1000.0, 1000.0, -1000.0], np.float32))
    assert probabilities == pytest.approx([0.5, 0.5, 0.0])
