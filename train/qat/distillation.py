"""A trained network whose answers another one learns, in place of labels.

Sources: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2; Beyer et al. 2021,
arXiv:2106.05237, section 3 (teacher and student look at the very same crop).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.model.resnet import Classifier, ResNet


class Teacher:
    """A network that stays as it is."""

    def __init__(self, network: ResNet, preprocessing: Preprocessing, *, mirrors: bool) -> None:
        """Take over `network`.

        Args:
            network: With its weights.
            preprocessing: Its mean and deviation.
            mirrors: Whether a mirrored image shows the same. Then the teacher looks at both, and is
                right more often than by one look.
        """
        self._classifier = Classifier(network, preprocessing.mean, preprocessing.std)
        self._classifier.eval().requires_grad_(False)
        self._mirrors = mirrors

    def to(self, device: torch.device) -> Teacher:
        """Itself, on `device`."""
        self._classifier.to(device)
        return self

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Probabilities, float32 (N, K), for uint8 images (N, H, W, 3)."""
        answers: Tensor = self._classifier(images).softmax(1)
        if self._mirrors:
            answers = (answers + self._classifier(images.flip(2)).softmax(1)) / 2
        return answers

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """How far another network's logits are from the answers: the images' KL divergences."""
        return F.kl_div(F.log_softmax(logits, 1), self.answers(images), reduction="sum")
