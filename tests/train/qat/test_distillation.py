"""A teacher answers for an image and its mirror image, and stays as it is."""

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


def teacher(*, mirrors: bool) -> Teacher:
    return Teacher(copy.deepcopy(make_classifier().network), PREPROCESSING, mirrors=mirrors)


def test_it_answers_as_the_network_does(images: Tensor) -> None:
    with torch.no_grad():
        expected = make_classifier()(images).softmax(1)
    torch.testing.assert_close(teacher(mirrors=False).answers(images), expected)


def test_with_mirrors_both_sides_count_alike(images: Tensor) -> None:
    seen = teacher(mirrors=True)
    with torch.no_grad():
        both = [make_classifier()(x).softmax(1) for x in (images, torch.flip(images, (2,)))]
    torch.testing.assert_close(seen.answers(images), torch.stack(both).mean(0))
    torch.testing.assert_close(seen.answers(images), seen.answers(images.flip(2)))


def test_the_loss_is_least_for_its_own_answers(images: Tensor) -> None:
    seen = teacher(mirrors=True)
    answers = seen.answers(images)
    # float32 sums of a few numbers near 1.
    assert seen.loss(answers.log(), images).item() == pytest.approx(0, abs=1e-5)
    logits = torch.randn(answers.shape, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    loss = seen.loss(logits, images)
    assert loss.item() > 0.01
    loss.backward()  # type: ignore[no-untyped-call]
    # The gradient of a Kullback-Leibler divergence behind a softmax.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - answers).detach())


def test_it_does_not_learn(images: Tensor) -> None:
    network = copy.deepcopy(make_classifier().network)
    seen = Teacher(network, PREPROCESSING, mirrors=True)
    before = copy.deepcopy(network.state_dict())
    seen.answers(images)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # the norms' statistics among them
