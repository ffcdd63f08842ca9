"""Knowledge distillation: a network learns the predictions of another one instead of labels.

Sources: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2; Beyer et al. 2021,
arXiv:2106.05237, section 3 (teacher and student get the same crop).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.model.resnet import Classifier, ResNet


class Teacher(nn.Module):
    """A frozen network whose predictions are the targets of another one."""

    def __init__(
        self, network: ResNet, preprocessing: Preprocessing, *, average_mirrored: bool
    ) -> None:
        """Take ownership of `network` and freeze it.

        With `average_mirrored`, the predictions for an image and its mirror image are averaged,
        which is more accurate if mirroring does not change the class.
        """
        super().__init__()
        self._classifier = Classifier(network, preprocessing)
        self._classifier.eval().requires_grad_(False)
        self._average_mirrored = average_mirrored

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return class probabilities, float32 (N, K), for uint8 images (N, H, W, 3)."""
        probabilities: Tensor = self._classifier(images).softmax(1)
        if self._average_mirrored:
            probabilities = (probabilities + self._classifier(images.flip(2)).softmax(1)) / 2
        return probabilities

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the KL divergence of the student's logits from the teacher, summed over images."""
        return F.kl_div(F.log_softmax(logits, 1), self.predict(images), reduction="sum")
