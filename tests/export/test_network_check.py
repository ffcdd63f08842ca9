"""Batch norms tell images like those of the training from others; labels are checked, too."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resdeploy.bundle.batch_norm_shift import (
    NO_STATISTICS,
    BatchNormShift,
    NormShift,
    shift_sentence,
    summarise_norms,
)
from resdeploy.bundle.bundle import open_bundle
from resdeploy.cli.export import export_text
from resdeploy.errors import DataError
from resdeploy.export import network_check, pipeline
from resdeploy.export.golden_images import synthetic_images
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.network_check import (
    check_network,
    drop_wrong_guess,
    label_warnings,
    measure_shift,
    shift_warnings,
    training_warnings,
)  # fmt: skip
from resdeploy.export.norm_inputs import LARGEST
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.source import network
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    UInt8Array,
)
from resdeploy.json_documents import jsonable, parse
from resdeploy.train.checkpoint.run import RunDocument, RunMetrics
from resdeploy.train.model.resnet import Classifier, ResNet
from tests.samples import CLASSES, SIZE, TINY, fit_network, make_classifier, write_images


def pixels_of(folder: Path) -> tuple[UInt8Array, tuple[int, ...]]:
    images = read_image_folder(folder)
    return np.stack([np.array(Image.open(path)) for path in images.files]), images.labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "data"
    write_images(folder / "train", 40, seed=0)
    return folder


@pytest.fixture(scope="module")
def fitted(data: Path) -> ResNet:
    """Return a network whose statistics and labels are those of `data`; do not change it."""
    images, labels = pixels_of(data / "train")
    return fit_network(make_classifier().network, images, labels)


@pytest.fixture(scope="module")
def checkpoint(fitted: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fitted") / "fitted.pth"
    torch.save(fitted.state_dict(), path)
    return path


def config(checkpoint: Path, data: Path, **settings: object) -> ExportConfig:
    labels = Path("labels.txt")
    labels.write_text("\n".join(CLASSES))
    base = ExportConfig(
        source=checkpoint, output=Path("x.bundle"), image_size=SIZE, labels=labels,
        calibration_data=data,
    )  # fmt: skip
    return dataclasses.replace(base, **settings)  # type: ignore[arg-type]


def shift_of(
    network: ResNet,
    images: UInt8Array,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> BatchNormShift:
    shift, logits = measure_shift(
        Classifier(network, Preprocessing(image_size=SIZE, mean=mean, std=std)), images
    )
    assert shift is not None
    assert logits.shape == (len(images), len(CLASSES))
    return shift


def test_the_images_of_the_training_do_not_shift(fitted: ResNet, data: Path) -> None:
    images, _ = pixels_of(data / "train")
    shift = shift_of(fitted, images)
    assert shift.images == 120
    assert [norm.name for norm in shift.norms[:3]] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    assert len(shift.norms) == 12
    # In training each norm sees the normalised output of the last one; the statistics are theirs.
    assert shift.norms[0].mean_shift < 1e-5
    assert shift.norms[0].variance_octaves < 1e-3
    assert max(norm.mean_shift for norm in shift.norms) < 0.01
    assert shift.fits


def test_the_first_norm_agrees_with_numpy(fitted: ResNet) -> None:
    images = synthetic_images(SIZE, 20, seed=0)
    (first, *_) = shift_of(fitted, images).norms
    classifier = Classifier(fitted, Preprocessing(image_size=SIZE))
    with torch.inference_mode():
        maps = fitted.conv1(classifier.normalize(torch.from_numpy(images))).double().numpy()
    norm = fitted.bn1
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    distances = np.abs(maps.mean((0, 2, 3)) - mean) / np.sqrt(variance + norm.eps)
    octaves = np.abs(np.log2((maps.var((0, 2, 3)) + norm.eps) / (variance + norm.eps)))
    # PyTorch's median of an even number of values is the lower one.
    assert first.mean_shift == pytest.approx(np.sort(distances)[31], rel=1e-4)
    assert first.variance_octaves == pytest.approx(np.sort(octaves)[31], rel=1e-4)


def test_other_images_of_the_same_kind_fit(fitted: ResNet, tmp_path: Path) -> None:
    write_images(tmp_path / "other", 40, seed=9)
    assert shift_of(fitted, pixels_of(tmp_path / "other")[0]).fits


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,) * 3, (0.5,) * 3),
        ((0.0,) * 3, (1.0,) * 3),
        ((0.0,) * 3, (1 / 255,) * 3),  # 0..255
        (IMAGENET_MEAN, tuple(0.6 * value for value in IMAGENET_STD)),
    ],
)
def test_a_wrong_normalisation_does_not_fit(
    fitted: ResNet, data: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    shift = shift_of(fitted, pixels_of(data / "train")[0], mean, std)
    assert shift.first_variance_octaves > shift.variance_limit
    assert not shift.fits
    assert "that is above the limit" in shift_sentence(shift)


def test_other_images_or_another_network_do_not_fit(fitted: ResNet, data: Path) -> None:
    images, _ = pixels_of(data / "train")
    assert not shift_of(fitted, synthetic_images(SIZE, 60, seed=0)).fits
    other = ResNet(TINY)
    other.load_state_dict(fitted.state_dict())
    other.maxpool = torch.nn.Identity()
    assert not shift_of(other, images).fits


def test_the_limits_shrink_with_the_number_of_images() -> None:
    norms = [NormShift(name="bn1", mean_shift=0.11, variance_octaves=0.45)]
    few, many = (summarise_norms(images, norms) for images in (16, 512))
    assert few.fits
    assert many.mean_limit == pytest.approx(0.118, abs=1e-3)
    assert not summarise_norms(
        512, [NormShift(name="bn1", mean_shift=0.13, variance_octaves=0.0)]
    ).fits
    assert not summarise_norms(
        512, [NormShift(name="bn1", mean_shift=0.0, variance_octaves=0.5)]
    ).fits


def test_norms_without_statistics_are_left_out(fitted: ResNet) -> None:
    images = synthetic_images(SIZE, 4, seed=0)
    fresh, _ = measure_shift(Classifier(ResNet(TINY), Preprocessing(image_size=SIZE)), images)
    assert fresh is None


def test_figures_are_finite_for_every_network(fitted: ResNet) -> None:
    huge = ResNet(TINY)
    huge.load_state_dict(fitted.state_dict())
    with torch.no_grad():
        huge.conv1.weight.mul_(1e30)
    shift = shift_of(huge, synthetic_images(SIZE, 4, seed=0))
    json.dumps(jsonable(shift), allow_nan=False)
    assert not shift.fits
    assert "differs by a factor of" in shift_sentence(shift)
    largest = dataclasses.replace(shift, first_variance_octaves=LARGEST)
    assert "a factor of 1.07e+301" in shift_sentence(largest)
    with pytest.raises(ValueError, match="images is 0"):
        dataclasses.replace(shift, images=0)


# Export


def test_an_export_records_and_prints_the_shift(checkpoint: Path, data: Path) -> None:
    result = export(config(checkpoint, data))
    bundle = open_bundle(result.bundle)
    shift = bundle.manifest.batch_norm_shift
    assert shift is not None
    assert shift == result.batch_norm_shift
    assert shift.images == 120
    (assumed,) = result.warnings
    assert assumed.message.startswith("the file of the network does not state its pre-processing")
    assert parse(BatchNormShift, jsonable(shift)) == shift
    assert shift_sentence(shift) in export_text(result)
    report = bundle.read("report.html").decode()
    assert ">Batch norms</h2>" in report
    assert "as expected if images and pre-processing are like those" in report


def test_an_export_without_images_has_no_shift(checkpoint: Path) -> None:
    result = export(ExportConfig(source=checkpoint, output=Path("x.bundle"), image_size=SIZE))
    assert result.batch_norm_shift is None
    assert "batch norms" not in export_text(result)
    report = open_bundle(result.bundle).read("report.html").decode()
    assert ">Batch norms</h2>" not in report


@pytest.mark.parametrize("is_own", [False, True])
def test_an_export_says_that_batch_norms_without_statistics_show_nothing(
    data: Path, tmp_path: Path, is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(ResNet(TINY).state_dict(), tmp_path / "fresh.pth")
    read = read_source

    def read_own(*arguments: Any, **settings: Any) -> Source:
        return dataclasses.replace(read(*arguments, **settings), is_own=is_own)

    monkeypatch.setattr(pipeline, "read_source", read_own)
    result = export(config(tmp_path / "fresh.pth", data))
    assert result.batch_norm_shift is None
    assert (NO_STATISTICS in export_text(result).splitlines()) is not is_own
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.batch_norms_lack_statistics is not is_own
    report = bundle.read("report.html").decode().replace("\u00a0", " ")
    assert ("The batch norms have no statistics, so they cannot tell" in report) is not is_own


def test_an_export_warns_of_a_wrong_image_size(
    checkpoint: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "resdeploy"):
        result = export(config(checkpoint, data, image_size=2 * SIZE))
    assumed, warning = open_bundle(result.bundle).manifest.warnings
    assert warning.message.startswith("the inputs of the batch norms differ from those in training")
    assert "--image-size" in warning.hint
    assert result.warnings == (assumed, warning)
    first = next(line for line in caplog.messages if line.startswith("exporting "))
    assert first == f"exporting fitted.pth: resnet10 at {2 * SIZE} pixels"
    assert "assumed: shorter side" in caplog.text
    assert "resdeploy preprocess CHECKPOINT" in caplog.text
    text = export_text(result)
    assert text.count("standard deviations from") == 1
    assert text.endswith("\nnext: resdeploy verify x.bundle; resdeploy serve x.bundle")


@pytest.mark.parametrize("is_own", [False, True])
def test_a_warning_has_one_cause_and_only_figures_above_the_limit(
    checkpoint: Path, data: Path, fitted: ResNet, is_own: bool
) -> None:
    source = read_source(checkpoint, image_size=2 * SIZE, calibration_data=data)
    check = check_network(source.network.classifier(source.preprocessing), source, 0)
    (warning,) = shift_warnings(check, dataclasses.replace(source, is_own=is_own))
    assert ("the inputs of the batch norms differ" in warning.message) is not is_own
    assert ("as the run's training images show: on 120" in warning.message) is is_own
    assert ("--image-size" in warning.hint) is not is_own
    assert ("--epochs" in warning.hint) is is_own
    assert "standard deviations from those in training" in warning.message
    assert "the variance at the first one" not in warning.message


@pytest.mark.parametrize("is_own", [False, True])
def test_a_run_that_learned_nothing_is_told_to_train_longer(
    checkpoint: Path, data: Path, fitted: ResNet, is_own: bool
) -> None:
    source = read_source(checkpoint, image_size=SIZE, calibration_data=data)
    check = check_network(source.network.classifier(source.preprocessing), source, 0)
    assert check is not None
    classes, predicted = np.random.default_rng(0).integers(0, 3, (2, 600))
    guessed = dataclasses.replace(check, classes=classes, predicted=predicted)
    own = dataclasses.replace(source, is_own=is_own)
    with pytest.raises(DataError, match="no more than by chance") as caught:
        label_warnings(guessed, own, labels_are_used=True)
    assert ("more epochs" in (caught.value.hint or "")) is is_own


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (RunMetrics(accuracy=25.0, baseline_accuracy=25.0, val_images=40), True),
        (RunMetrics(accuracy=17.5, baseline_accuracy=25.0), True),
        (RunMetrics(accuracy=90.0, baseline_accuracy=25.0, val_images=40), False),
        (RunMetrics(), False),
        (None, False),
    ],
)
def test_a_run_that_is_no_better_than_one_class_is_a_warning(
    metrics: RunMetrics | None, told: bool
) -> None:
    run = RunDocument(
        architecture={},
        preprocessing=Preprocessing(image_size=32),
        labels=(),
        data="photos",
        metrics=metrics,
    )
    messages = [warning.message for warning in training_warnings(run)]
    assert bool(messages) is told
    assert training_warnings(None) == []
    if metrics and metrics.val_images and told:
        assert "25.00 % on 40 validation images, and 25.00 % is the accuracy of" in messages[0]


def test_a_network_that_learned_nothing_is_named_before_the_long_work(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, metrics = read_source, RunMetrics(accuracy=25.0, baseline_accuracy=25.0, val_images=40)

    def read_run(*arguments: Any, **settings: Any) -> Source:
        source = read(*arguments, **settings)
        run = RunDocument(
            architecture={}, preprocessing=source.preprocessing, labels=(), data="", metrics=metrics
        )
        return dataclasses.replace(source, run=run)

    def check_first(*arguments: Any) -> None:
        assert "25.00 % is the accuracy of one class; to stop this export: Ctrl-C" in caplog.text

    monkeypatch.setattr(pipeline, "read_source", read_run)
    monkeypatch.setattr(pipeline, "check_network", check_first)
    with caplog.at_level(logging.INFO, "resdeploy"):
        text = export_text(export(config(checkpoint, data, image_size=SIZE)))
    assert text.count("no better than always predicting one class: the training measured") == 1
    assert text.endswith(
        "\nnext: train again, because the network is no better than always predicting one class"
    )


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("labels_are_used", [False, True])
def test_a_network_that_is_not_shown_to_be_better_than_chance_is_a_warning(
    checkpoint: Path,
    data: Path,
    fitted: ResNet,
    is_own: bool,
    labels_are_used: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = read_source(checkpoint, image_size=SIZE, calibration_data=data)
    check = check_network(source.network.classifier(source.preprocessing), source, 0)
    assert check is not None
    guessed = dataclasses.replace(
        check, classes=np.array([0, 1, 2, 0]), predicted=np.array([0, 0, 0, 1])
    )
    own = dataclasses.replace(source, is_own=is_own)
    assert label_warnings(guessed, own, labels_are_used=labels_are_used) == []
    assert "too few to tell" in caplog.text
    assert "the network is trained: the predictions are correct for 25.0 % of them" in caplog.text
    assert "43.8 % if the labels were shuffled" in caplog.text


@pytest.mark.parametrize("named", [False, True])
def test_an_export_says_that_the_classes_have_no_names(
    checkpoint: Path, data: Path, fitted: ResNet, named: bool
) -> None:
    Path("names.txt").write_text("ant\nbee\ncat")
    result = export(config(checkpoint, data, labels=Path("names.txt") if named else None))
    assert result.labels_are_assumed is not named
    told = "predictions show 'class 0' and so on; name the classes with --labels FILE"
    assert (told in export_text(result)) is not named


@pytest.mark.parametrize("stated", [False, True])
def test_only_an_assumed_size_is_compared_with_others(
    checkpoint: Path,
    data: Path,
    fitted: ResNet,
    stated: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(network, "DEFAULT_IMAGE_SIZE", 2 * SIZE)
    monkeypatch.setattr(network_check, "TRIED_SIZES", (SIZE // 2, SIZE))
    size = 2 * SIZE if stated else None
    source = read_source(checkpoint, image_size=size, calibration_data=data)
    check_network(source.network.classifier(source.preprocessing), source, 0)
    warning = f"contradict the assumed {2 * SIZE} pixels, and fit {SIZE}: stop this work"
    assert (warning in caplog.text) is not stated


def test_an_unreadable_image_is_passed_over(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "broken.png").write_bytes(b"")
    source = read_source(checkpoint, image_size=SIZE, calibration_data=tmp_path / "few")
    classifier = source.network.classifier(Preprocessing(image_size=SIZE))
    assert check_network(classifier, source, 0) is None
    assert shift_warnings(None, source) == []
    good = next((data / "train" / "red").iterdir())
    (tmp_path / "few" / "good.png").write_bytes(good.read_bytes())
    source = read_source(checkpoint, image_size=SIZE, calibration_data=tmp_path / "few")
    check = check_network(classifier, source, 0)
    assert check is not None
    assert check.shift is not None
    assert check.shift.images == 1
    assert check.classes is None  # no class folders


@pytest.fixture(scope="module")
def mixed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders, each with pictures of all classes of `data`."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    for index, path in enumerate(sorted(data.rglob("*.png")) * 2):
        place = folder / "train" / ("ant", "bee", "cat")[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:03d}.png").write_bytes(path.read_bytes())
    return folder


def test_class_folders_that_were_a_guess_are_not_used_if_predictions_are_at_chance(
    checkpoint: Path, mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guessed = config(
        checkpoint, mixed, labels=None, int8=True, calibrator="max", calibration_images=16
    )
    result = export(guessed)
    assert "the class folders are not taken as the network's classes" in caplog.text
    assert re.search(r"correct for [\d.]+ % of 240 images, no more than by chance", caplog.text)
    assert result.calibration is not None
    assert result.calibration.classes is None
    assert not any("chance" in warning.message for warning in result.warnings)


def test_class_folders_with_the_names_of_the_labels_are_no_guess(
    checkpoint: Path, mixed: Path
) -> None:
    named = config(checkpoint, mixed, int8=True)
    Path("labels.txt").write_text("ant\nbee\ncat")
    with pytest.raises(DataError, match="no more than by chance"):
        export(named)


def test_a_guess_that_the_predictions_confirm_is_used(
    checkpoint: Path, data: Path, fitted: ResNet
) -> None:
    source = read_source(checkpoint, image_size=SIZE, calibration_data=data)
    assert source.classes_are_guessed
    check = check_network(source.network.classifier(source.preprocessing), source, 0)
    assert drop_wrong_guess(check, source) == (check, source)
    labels = Path("labels.txt")
    labels.write_text("\n".join(CLASSES))
    named = read_source(checkpoint, image_size=SIZE, calibration_data=data, labels=labels)
    assert not named.classes_are_guessed


def test_an_int8_export_refuses_labels_in_another_order(checkpoint: Path, data: Path) -> None:
    names = Path("renamed.txt")
    names.write_text("\n".join([*CLASSES[1:], CLASSES[0]]))
    shifted = config(checkpoint, data, labels=names)
    with pytest.raises(
        DataError, match=r"calibration images are not in the order.*3 of 3"
    ) as caught:
        export(dataclasses.replace(shifted, int8=True))
    assert "'blue' -> 'green'" in str(caught.value)
    assert not Path("x.bundle").exists()
    # Nothing but INT8 uses the labels.
    _assumed, warning = export(shifted).warnings
    assert "not in the order of the network's classes" in warning.message
