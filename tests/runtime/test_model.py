"""Loading of a bundle with a backend that passes the golden check, and its predictions."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, BundleError, ImageError
from resdeploy.predictions import softmax
from resdeploy.runtime import load
from resdeploy.runtime.backends import registry
from resdeploy.runtime.model import CPU_BATCH, Model
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


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> Iterator[Model]:
    with load(tiny_bundle.path, "onnxruntime-cpu", threads=1) as opened:
        yield opened


def test_predictions_are_sorted_and_sum_to_one(model: Model, image_data: Path) -> None:
    predictions = model.predict(image_data / "val" / "red" / "000.png")
    assert len(predictions) == 3
    probabilities = [prediction.probability for prediction in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert all(prediction.label == CLASSES[prediction.index] for prediction in predictions)


def test_all_forms_of_a_picture_give_equal_predictions(model: Model, image_data: Path) -> None:
    path = image_data / "val" / "red" / "000.png"
    with Image.open(path) as picture:
        forms: list[Any] = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
        results = [model.predict(image) for image in forms]
    assert all(result == results[0] for result in results)


def test_top_limits_the_predictions(model: Model, image_data: Path) -> None:
    path = image_data / "val" / "red" / "000.png"
    assert model.predict(path, top=1) == model.predict(path)[:1]


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_numbers_below_one_are_refused(model: Model, value: Any) -> None:
    with pytest.raises(ValueError, match="must be a number from 1"):
        load(model.bundle.path, threads=value)
    with pytest.raises(ValueError, match="must be a number from 1"):
        model.classify(np.zeros((1, SIZE, SIZE, 3), np.uint8), top=value)


def test_a_batch_gives_the_predictions_of_its_pictures(model: Model, image_data: Path) -> None:
    paths = sorted((image_data / "val").rglob("*.png"))[: CPU_BATCH + 3]
    expected = [model.predict(path, 2) for path in paths]
    assert model.predict_batch((path for path in paths), 2) == expected  # a generator
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert model.predict_batch(pixels, 2) == expected
    assert model.predict_batch([]) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", "a list of pictures, not a str; predict takes one"),
        (b"GIF", "a list of pictures, not a bytes"),
        (Path("a.png"), "a list of pictures, not a PosixPath"),
        (Image.new("RGB", (8, 8)), "a list of pictures, not a Image"),
        (None, "a list of pictures, not a NoneType"),
        ({"a.png": 1}, "a list of pictures, not a dict"),
        (np.zeros((8, 8, 3), np.uint8), "has 4 axes, .*, not 3"),  # its rows are no pictures
        ([np.zeros((8, 8)), "a.png"], "picture 0: pixels are float64"),
        ([np.zeros((8, 8), np.uint8), 3], "picture 1: a picture is a path, .*, not a int"),
        (["none.png"], "picture 0: none.png cannot be read: No such file"),
        ([b"\xff"], "picture 0: the image cannot be decoded"),
    ],
)  # fmt: skip
def test_rejects_what_is_no_list_of_pictures(model: Model, images: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError, ImageError), match=message) as caught:
        model.predict_batch(images)
    assert "\n" not in str(caught.value)


def test_a_model_says_what_runs_where(model: Model, tiny_bundle: Bundle) -> None:
    assert repr(model) == (
        f"<Model {tiny_bundle.path}: int8-cpu.onnx on onnxruntime-cpu, 1 thread>"
    )
    assert model.preprocessing == tiny_bundle.manifest.preprocessing
    on_gpu = Model(tiny_bundle, model.artifact, model.backend, None)
    assert repr(on_gpu).endswith("on onnxruntime-cpu, a GPU>")
    assert on_gpu.batch > model.batch


def test_rejects_a_damaged_image(model: Model) -> None:
    with pytest.raises(ImageError):
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
def test_rejects_arrays_of_other_dtype_or_shape(model: Model, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the model takes uint8"):
        model.run(images)


def test_accepts_a_non_contiguous_view(model: Model, tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images
    flipped = model.run(images[:, :, ::-1])
    np.testing.assert_array_equal(flipped, model.run(images[:, :, ::-1].copy()))


def test_softmax_of_large_logits_is_finite() -> None:
    probabilities = softmax(np.array([1000.0, 1000.0, -1000.0], np.float32))
    assert probabilities == pytest.approx([0.5, 0.5, 0.0])
