"""Tests that quantisation-aware training computes the same logits as the exported graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import DataError, TrainingError
from resdeploy.export import inputs
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.inputs import read_source
from resdeploy.export.quantization.calibrate import LEARNED, calibrate
from resdeploy.export.quantization.qat_initialization import (
    quantized_inputs,
    quantized_start,
    train_quantized,
    unfold_norms,
)
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.progress import silent
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.statistics import sqnr_db
from resdeploy.train import initialization, trainer
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.config import TrainingConfig
from resdeploy.train.evaluation import evaluate
from resdeploy.train.initialization import prepare
from resdeploy.train.model.resnet import Classifier, ResNet
from resdeploy.train.qat.network import QuantizedClassifier
from resdeploy.train.run.folder import save_model
from tests.samples import CLASSES, FAMILY, SIZE, fit_network, make_classifier, write_images


def config_for(checkpoint: Path, data: Path, **settings: Any) -> TrainingConfig:
    return TrainingConfig.from_recipe(
        None, qat=True, init=str(checkpoint), data=str(data), image_size=SIZE, batch_size=16,
        **settings,
    )  # fmt: skip


def write_run(folder: Path, network: ResNet) -> Path:
    """Write a run folder, whose `model.json` names the whole architecture."""
    folder.mkdir()
    save_model(
        folder, network, labels=CLASSES, preprocessing=Preprocessing(image_size=SIZE), data="",
        config={}, metrics={}, provenance={},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: Path, image_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("qat") / "run"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder.parent)
    loads: list[Path] = []

    def load(path: Path, *_: Any) -> Checkpoint:
        loads.append(path)
        return load_checkpoint(path)

    for module in (initialization, inputs):
        monkeypatch.setattr(module, "load_checkpoint", load)
    train_quantized(config_for(tiny_checkpoint, image_data, epochs=2), folder)
    assert loads == [tiny_checkpoint]  # once for all steps
    monkeypatch.undo()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("member", [None, "grouped-concat"])
def test_the_export_takes_the_learned_ranges_and_gives_the_same_logits(
    member: str | None, request: pytest.FixtureRequest, image_data: Path, tmp_path: Path
) -> None:
    if member is None:
        run = request.getfixturevalue("finished")
    else:
        run = tmp_path / "run"
        images = read_image_folder(image_data / "train")
        pixels = np.stack([np.array(Image.open(path)) for path in images.files])
        network = fit_network(make_classifier(FAMILY[member]).network, pixels, images.labels)
        init = write_run(tmp_path / "init", network)
        train_quantized(config_for(init, image_data, epochs=1), run)
    source = read_source(run, calibration_data=image_data)
    learned = source.checkpoint.learned_ranges
    assert learned
    pre = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), pre)
    model = to_onnx(classifier, SIZE)
    calibration = calibrate(
        model, source, calibrator="max", images=40, seed=0, golden_digests=(), progress=silent
    )
    recipe = calibration.recipes[Encoding.TENSORRT]
    assert recipe.calibrator == LEARNED
    pixels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    scales = {tensor: largest / 127 for tensor, largest in learned.items()}
    trained = QuantizedClassifier(classifier, scales, quantized_inputs(recipe, model)).eval()
    with torch.inference_mode():
        expected = trained(torch.from_numpy(pixels)).numpy()
    backend = OnnxRuntimeCpu(
        to_bytes(recipe.apply(calibration.model, half=False)), Encoding.TENSORRT
    )
    exported = backend.run(pixels)
    backend.close()
    # Sums in another order may move a few INT8 values by one step, but none of the median image
    # (133 dB on the CIFAR-10 network). The SQNR of INT8 against float is about 30 dB.
    assert np.median(sqnr_db(expected, exported)) > 60


def test_the_start_has_the_logits_of_the_original_network(
    tiny_checkpoint: Path, image_data: Path
) -> None:
    start = quantized_start(
        config_for(tiny_checkpoint, image_data), load_checkpoint(tiny_checkpoint)
    )
    network = load_checkpoint(tiny_checkpoint).network()
    images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = network(images).numpy()
        assert start.weights is not None
        network.load_state_dict(dict(start.weights))
        after = network(images).numpy()
    # Folding norms and equalising channels rounds some weights again, by 1e-7 of each.
    assert np.median(sqnr_db(before, after)) > 100


@torch.inference_mode()
def test_the_start_of_a_bgr_network_keeps_the_order_of_its_channels() -> None:
    settings = Preprocessing(image_size=SIZE, channels=Channels.BGR)
    classifier = make_classifier(preprocessing=settings)
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    before = classifier(images).numpy()
    state = unfold_norms(to_onnx(classifier, SIZE), classifier)
    classifier.network.load_state_dict(state)
    # Folding norms rounds the weights again, by 1e-7 of each.
    assert np.median(sqnr_db(before, classifier(images).numpy())) > 100


def test_rejects_labels_in_another_order_before_the_training(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", 20, seed=0)
    write_images(tmp_path / "data" / "val", 4, seed=1)
    images = read_image_folder(tmp_path / "data" / "train")
    pixels = np.stack([np.array(Image.open(path)) for path in images.files])
    network = fit_network(make_classifier().network, pixels, images.labels)
    save_file(
        network.state_dict(), tmp_path / "x.safetensors", {"labels": '["red", "blue", "green"]'}
    )
    config, initial = prepare(config_for(tmp_path / "x.safetensors", tmp_path / "data"))
    assert initial is not None
    with pytest.raises(DataError, match="calibration images are not in the order"):
        quantized_start(config, initial)


def test_a_resumed_run_is_bit_identical(
    finished: Path, tiny_checkpoint: Path, image_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    calls = []

    def stop_at_second(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "evaluate", stop_at_second)
    checkpoint = Path(shutil.copy(tiny_checkpoint, tmp_path / "teacher.pth"))
    with pytest.raises(KeyboardInterrupt):
        train_quantized(config_for(checkpoint, image_data, epochs=2), folder)
    monkeypatch.setattr(trainer, "evaluate", evaluate)
    checkpoint.unlink()  # the run folder holds the teacher
    teacher = folder / "teacher.safetensors"
    content = teacher.read_bytes()
    teacher.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TrainingError, match="is not the teacher of this run"):
        trainer.resume(folder)
    teacher.write_bytes(content)
    trainer.resume(folder)
    resumed, uninterrupted = load_checkpoint(folder), load_checkpoint(finished)
    for name, tensor in uninterrupted.state.items():
        assert torch.equal(resumed.state[name], tensor), name
    assert resumed.learned_ranges == uninterrupted.learned_ranges


def test_rejects_another_number_of_classes(
    tiny_checkpoint: Path, image_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "two"
    for split in ("train", "val"):
        for name in ("blue", "red"):
            (data / split).mkdir(parents=True, exist_ok=True)
            (data / split / name).symlink_to(image_data / split / name)
    with pytest.raises(TrainingError, match="has 3 classes"):
        train_quantized(config_for(tiny_checkpoint, data), tmp_path / "run")
