"""Tests of the report of a run, and of its curves."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.machine.device import Device
from resdeploy.pages.blocks import Figure, Page
from resdeploy.pages.svg import PLOT_HEIGHT
from resdeploy.pages.template import to_html
from resdeploy.result_files.provenance import Environment
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import DataSplits, read_splits
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import Evaluation, Mistake
from resdeploy.train.run.outcome import RunOutcome
from resdeploy.train.run.report import confused_pairs, training_page, used_settings
from resdeploy.train.step import Learner
from tests.samples import SIZE
from tests.train.run.test_folder import metrics

CONFUSION = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
MISTAKE = Mistake(position=0, label=1, predicted=2, probability=0.9, true_probability=0.004)
BEGIN, FINISH = "resdeploy train data", "resdeploy train --resume one --finish"
METRICS = [
    metrics(1),
    metrics(2),
    metrics(3),
    dataclasses.replace(metrics(3), epoch=4, accuracy=9.0),
]


def page_of_a_run(
    image_data: Path,
    *,
    confusion: Any = CONFUSION,
    classes: tuple[str, ...] = ("blue", "green", "red"),
    data: str = "/home/someone/data",
    lines: Any = METRICS,
    epochs: int = 9,
    finish: bool = False,
    doubts: tuple[str, ...] = ("the images are few; add more",),
) -> Page:
    images = dataclasses.replace(read_splits(image_data).val, classes=classes)
    config = TrainingConfig(data=data, patience=1, epochs=epochs)
    splits = DataSplits(images, images, held_out=True)
    return training_page(
        Path("/home/someone/runs/one"),
        {"network": "resnet10", "label smoothing": "0.1"},
        RunOutcome.of(lines, config, splits, 50.0, 1, finish),
        lines,
        Evaluation(loss=1.0, confusion=confusion, worst=(MISTAKE,), unreadable={}),
        images,
        Preprocessing.standard(SIZE),
        ["/home/someone/data/damaged.png"],
        Environment(date="2026-11-24T10:00:00", command=FINISH, device=Device(cpu="Processor <1>")),
        BEGIN,
        doubts,
        ["the network is new"],
    )


def test_confused_pairs_are_sorted_by_frequency() -> None:
    assert confused_pairs(CONFUSION) == [(1, 2), (0, 1)]


def test_the_report_shows_matrix_mistakes_and_settings(image_data: Path) -> None:
    text = to_html(page_of_a_run(image_data)).decode().replace("\u00a0", " ")
    whole = re.sub(r'<span class="option">(.*?)</span>', r"\1", text)
    assert "<h1>65.00 % top-1 accuracy</h1>" in text
    assert text.count("data:image/png;base64,") == 1
    assert '<table class="matrix">' in text
    assert "All mistakes." not in text  # one of seven is shown
    assert "label smoothing" in text
    assert "<strong>the images are few.</strong></p><p>Remedy: add more.</p>" in text
    assert "(&lt; 1 %), predicted red (90 %)" in text
    assert re.search(r"<br>\w+\.\w+</figcaption>", text)  # the folder is the true class
    assert f"resnet10 at {SIZE} pixels, 3 classes; training run one, on 2026-11-24 on " in text
    assert (
        "measured on 20 validation images (95 % interval 43.3 to 81.9 %), which also chose the "
        "epoch." in text
    )
    assert "model.safetensors holds the network of epoch 3, the most accurate of 4." in text
    longer = to_html(page_of_a_run(image_data, epochs=3, lines=METRICS[:3])).decode()
    assert "the most accurate of 3; it is the last one" in longer
    assert "so more epochs may help." in longer
    falling = [dataclasses.replace(METRICS[0], epoch=n, val_loss=2 - n, accuracy=n) for n in (1, 2)]
    finished = page_of_a_run(image_data, lines=falling, finish=True).summary[1]
    assert "; it is the last one and the loss still fell, so more epochs may help." in finished
    assert page_of_a_run(image_data).summary[-1] == "The network is new."
    assert "<pre><code>resdeploy export one --int8</code></pre>" in whole.partition("<h2")[0]
    assert '<span class="option">--int8</span>' in text  # no line ends within an option
    # One command began the run, another one ended it.
    assert f"<code>{BEGIN}\n{FINISH}</code>" in whole
    assert "on Processor &lt;1&gt;" in text
    assert "the most frequent class has an accuracy of 33.33 %." in text
    assert "before epoch 9: neither top-1 accuracy nor loss has improved in 1 epoch." in text
    assert "http" not in text.lower()
    assert "/home" not in text  # a report may be published
    assert "<code>damaged.png</code>" in text


def test_the_export_is_advised_only_after_the_warnings(image_data: Path) -> None:
    page = page_of_a_run(image_data)
    assert page.recommendation == "If the warnings above are acceptable, export the network:"
    text = to_html(page).decode()
    assert text.index('<div class="warning"') < text.index('<p class="recommendation">')
    assert page_of_a_run(image_data, doubts=()).recommendation == "Next, export the network:"
    guessing = page_of_a_run(image_data, confusion=np.array([[2, 8, 0], [0, 0, 10], [0, 0, 0]]))
    assert not guessing.recommendation


def test_an_accuracy_that_can_be_chance_is_not_exported(image_data: Path) -> None:
    confusion = np.array([[4, 6, 0], [3, 4, 3], [0, 0, 0]])  # 40 %, and 33.33 % for one class
    page = page_of_a_run(image_data, confusion=confusion)
    assert not page.recommendation
    assert not page.commands
    ((message,), hint) = page.warnings[-1]
    assert message.startswith("on so few images, this can be chance: the accuracy is 22 to 61 %")
    assert hint.startswith("use more images")


def test_many_classes_are_shown_without_the_matrix(image_data: Path) -> None:
    confusion = np.eye(40, dtype=np.int64)
    confusion[3, 4] = 7
    classes = tuple(f"class {n}" for n in range(40))
    text = to_html(page_of_a_run(image_data, confusion=confusion, classes=classes)).decode()
    assert '<table class="matrix' not in text
    assert '<th scope="row">class 3</th><td class="word ">class 4</td><td>7</td>' in text


def test_labels_and_settings_are_escaped(image_data: Path) -> None:
    odd = ("<script>alert(1)</script>", "b", "c")
    text = to_html(page_of_a_run(image_data, classes=odd, data='"><img src=x>')).decode()
    assert "<script>" not in text
    assert "<img src=x>" not in text


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("odd", [1.0, 1e9, float("nan"), float("inf")])
def test_the_curves_mark_baseline_and_best_epoch(image_data: Path, epochs: int, odd: float) -> None:
    lines = [metrics(epoch) for epoch in range(1, epochs + 1)]
    lines[0] = dataclasses.replace(lines[0], val_loss=odd)
    figures = page_of_a_run(image_data, lines=lines).sections[0].blocks
    for figure in figures:
        assert isinstance(figure, Figure)
        assert ("mark0", f"most accurate epoch: {epochs}") in figure.legend
        styles = {part.get("class") for part in ET.fromstring(figure.svg).iter()}
        assert {style for style, _ in figure.legend} <= styles
    accuracy, loss = figures
    assert isinstance(accuracy, Figure)
    assert isinstance(loss, Figure)
    assert ("mark1", "always the most frequent class: 33.33 %") in accuracy.legend
    ticks = [part.text or "" for part in ET.fromstring(loss.svg).iter("text")]
    assert not [tick for tick in ticks if tick.startswith("-")]  # a huge loss does not rescale
    assert ("drawn at its edge: 1e+09 in epoch 1." in loss.caption) == (odd == 1e9 and epochs == 5)


def test_a_peak_of_the_loss_is_inside_the_plot(image_data: Path) -> None:
    """A loss of 9.9 after the first epoch is common; 0 cannot be shown on a logarithmic axis."""
    lines = [
        dataclasses.replace(metrics(n), val_loss=loss) for n, loss in enumerate((9.9, 0.4, 0), 1)
    ]
    loss = page_of_a_run(image_data, lines=lines).sections[0].blocks[1]
    assert isinstance(loss, Figure)
    assert "at its edge" not in loss.caption
    (curve,) = (
        part.attrib["points"].split()
        for part in ET.fromstring(loss.svg).iter("polyline")
        if part.get("class") == "line1"
    )
    heights = [float(point.split(",")[1]) for point in curve]
    assert 24 < heights[0] < heights[1] < heights[2] < PLOT_HEIGHT


def test_the_settings_are_those_that_were_used(narrow_checkpoint: Path) -> None:
    network = load_checkpoint(narrow_checkpoint).network()
    config = TrainingConfig(init="/home/someone/n.pth", epochs=12, mixup=0.0, seed=0, crop="scale")
    learner = Learner(
        config, network, Preprocessing.standard(SIZE), Process(0, 1, torch.device("cpu"))
    )
    used = used_settings(config.pinned(), learner, 3)
    assert "None" not in used.values()
    assert used["patience"] == "4"
    assert used["network"] == network.architecture.name
    assert (used["stem"], used["bfloat16"]) == ("imagenet", "yes" if learner.bf16 else "no")
    assert (used["seed"], used["initial weights"]) == ("0", "n.pth")
    assert used["additional processes that read images"] == "3"
    rate = config.lr * config.batch_size / 256
    assert used["highest learning rate at a batch of 256"].endswith(
        f", so {rate:g} at this batch size"
    )
    assert not used.keys() & {"mixup", "smallest area of a crop", "freeze", "save minutes"}
