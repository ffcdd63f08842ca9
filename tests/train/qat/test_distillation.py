"""Tests of the teacher network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.qat.distillation import Teacher
from tests.samples import SIZE, make_classifier

PREPROCESSING = Preprocessing.standard(SIZE)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)


def make_teacher(*, average_mirrored: bool) -> Teacher:
    return Teacher(
        copy.deepcopy(make_classifier().network), PREPROCESSING, average_mirrored=average_mirrored
    )


def test_the_teacher_predicts_as_its_network(images: Tensor) -> None:
    with torch.no_grad():
        expected = make_classifier()(images).softmax(1)
    torch.testing.assert_close(make_teacher(average_mirrored=False).predict(images), expected)


def test_predictions_for_mirrored_images_are_averaged(images: Tensor) -> None:
    teacher = make_teacher(average_mirrored=True)
    with torch.no_grad():
        both = [make_classifier()(x).softmax(1) for x in (images, torch.flip(images, (2,)))]
    torch.testing.assert_close(teacher.predict(images), torch.stack(both).mean(0))
    torch.testing.assert_close(teacher.predict(images), teacher.predict(images.flip(2)))


def test_the_loss_is_zero_for_the_teachers_own_predictions(images: Tensor) -> None:
    teacher = make_teacher(average_mirrored=True)
    predictions = teacher.predict(images)
    # float32 sums of a few numbers near 1.
    assert teacher.loss(predictions.log(), images).item() == pytest.approx(0, abs=1e-5)
    logits = torch.randn(predictions.shape, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    loss = teacher.loss(logits, images)
    assert loss.item() > 0.01
    loss.backward()  # type: ignore[no-untyped-call]
    # The gradient of a Kullback-Leibler divergence behind a softmax.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - predictions).detach())


def test_the_teacher_is_frozen(images: Tensor) -> None:
    network = copy.deepcopy(make_classifier().network)
    teacher = Teacher(network, PREPROCESSING, average_mirrored=True)
    before = copy.deepcopy(network.state_dict())
    teacher.predict(images)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # the norms' statistics among them
