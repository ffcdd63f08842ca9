"""A network that computes as its exported INT8 graph does, and trains.

The float network keeps the weights, under torchvision's names; at every step they are folded with
their norms and put on their grids, and so is what the exported graph quantises before a layer reads
it. What that is, is the export's decision: it comes here as names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resdeploy.train.model.resnet import Classifier, normed_convolutions
from resdeploy.train.qat.fake_quantization import (
    INT8_MAX,
    half_up,
    quantize_activation,
    quantize_weight,
)

DOT = "/"  # a parameter's name must not hold a dot
SCALES = "scales."  # before the names of scales in the state


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedStart:
    """What quantisation-aware training starts from."""

    weights: Mapping[str, Tensor] | None
    """State of the float network; None where it comes with the run's state."""
    scales: Mapping[str, float]
    """By the tensor that is quantised."""
    reads: Mapping[str, str]
    """The tensor whose grid a layer's input is put on, by the layer's name in the network."""


class QuantizedClassifier(nn.Module):
    """The INT8 twin of a classifier: uint8 images (N, H, W, 3) -> float32 logits (N, K)."""

    def __init__(
        self, classifier: Classifier, scales: Mapping[str, float], reads: Mapping[str, str]
    ) -> None:
        """Share `classifier`'s weights, whose norms keep their statistics from now on.

        `scales` and `reads` are those of `QuantizedStart`.
        """
        super().__init__()
        self.classifier = classifier
        self.scales = nn.ParameterDict(
            {name.replace(".", DOT): torch.tensor(scale) for name, scale in scales.items()}
        )
        # Structure without numbers, and not a part of this module: it has no weights of its own.
        self._folded = (_without_norms(classifier),)
        for layer, tensor in reads.items():
            module = self._folded[0].network.get_submodule(layer)
            module.register_forward_pre_hook(self._quantizer(tensor.replace(".", DOT)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(
            self._folded[0], dict(self._numbers()), (images,), strict=True
        )
        return logits

    def train(self, mode: bool = True) -> QuantizedClassifier:
        super().train(mode)
        self.classifier.eval()  # the norms are folded: their statistics stand
        self._folded[0].train(mode)
        return self

    def learned(self) -> dict[str, float]:
        """The largest value that each tensor's grid holds."""
        return {
            name.replace(DOT, "."): INT8_MAX * float(half_up(scale.detach()))
            for name, scale in self.scales.items()
        }

    def _quantizer(self, name: str) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda _module, inputs: quantize_activation(inputs[0], self.scales[name])

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        """What the folded network computes with, by name."""
        for name, buffer in self.classifier.normalize.named_buffers():
            yield f"normalize.{name}", buffer
        for name, convolution, _, norm in normed_convolutions(self.classifier):
            # As `torch.nn.utils.fusion.fuse_conv_bn_weights` does, but with gradients.
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            spread = torch.rsqrt(variance + norm.eps)
            factor = (norm.weight * spread).view(-1, 1, 1, 1)
            yield f"{name}.weight", quantize_weight(convolution.weight * factor)
            yield f"{name}.bias", -mean * spread * norm.weight + norm.bias
        head = self.classifier.network.fc
        yield "network.fc.weight", quantize_weight(head.weight)
        yield "network.fc.bias", head.bias


def _without_norms(classifier: Classifier) -> Classifier:
    folded = copy.deepcopy(classifier).to("meta")
    for _, convolution, norm_name, _ in list(normed_convolutions(folded)):
        convolution.bias = nn.Parameter(torch.empty(convolution.out_channels, device="meta"))
        folded.set_submodule(norm_name, nn.Identity())
    return folded
