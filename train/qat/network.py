"""A trainable network with the fake quantisation of its exported INT8 graph.

The float network keeps the weights, under torchvision's names. Every forward pass folds batch norm
into them and quantises them per output channel. It also quantises the inputs of the layers that the
export names in `QuantizedStart`.
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
    fake_quantize_activation,
    fake_quantize_weight,
    round_up_to_float16,
)

DOT = "/"  # replaces dots, which PyTorch does not allow in names of parameters
SCALES = "scales."  # prefix of the scales in the state


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedStart:
    """The initial weights and scales of quantisation-aware training."""

    weights: Mapping[str, Tensor] | None
    """State of the float network; None for a resumed run, whose state holds the weights."""
    scales: Mapping[str, float]
    """Scales by the names of the quantised tensors."""
    quantized_inputs: Mapping[str, str]
    """Name of the quantised tensor, by the name of the layer in the network that reads it."""


class QuantizedClassifier(nn.Module):
    """A fake-quantised classifier: uint8 images (N, H, W, 3) -> float32 logits (N, K)."""

    def __init__(
        self,
        classifier: Classifier,
        scales: Mapping[str, float],
        quantized_inputs: Mapping[str, str],
    ) -> None:
        """Share the weights of `classifier`; the mappings are those of `QuantizedStart`."""
        super().__init__()
        self.classifier = classifier
        self.scales = nn.ParameterDict(
            {name.replace(".", DOT): torch.tensor(scale) for name, scale in scales.items()}
        )
        # The copy has no weights; the tuple hides it from PyTorch's list of submodules.
        self._folded = (_without_norms(classifier),)
        for layer, tensor in quantized_inputs.items():
            module = self._folded[0].network.get_submodule(layer)
            module.register_forward_pre_hook(self._quantizer(tensor.replace(".", DOT)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(
            self._folded[0], dict(self._folded_tensors()), (images,), strict=True
        )
        return logits

    def train(self, mode: bool = True) -> QuantizedClassifier:
        super().train(mode)
        self.classifier.eval()  # keeps the batch-norm statistics, which are folded into weights
        self._folded[0].train(mode)
        return self

    def learned(self) -> dict[str, float]:
        """Return the largest representable value of each quantised tensor."""
        return {
            name.replace(DOT, "."): INT8_MAX * float(round_up_to_float16(scale.detach()))
            for name, scale in self.scales.items()
        }

    def _quantizer(self, name: str) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda _module, inputs: fake_quantize_activation(inputs[0], self.scales[name])

    def _folded_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and values of the folded network's tensors."""
        for name, buffer in self.classifier.normalize.named_buffers():
            yield f"normalize.{name}", buffer
        for name, convolution, _, norm in normed_convolutions(self.classifier):
            # Like `torch.nn.utils.fusion.fuse_conv_bn_weights`, but with gradients.
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            inverse_std = torch.rsqrt(variance + norm.eps)
            factor = (norm.weight * inverse_std).view(-1, 1, 1, 1)
            yield f"{name}.weight", fake_quantize_weight(convolution.weight * factor)
            yield f"{name}.bias", -mean * inverse_std * norm.weight + norm.bias
        for name, layer in self.classifier.named_modules():
            if isinstance(layer, nn.Linear):
                yield f"{name}.weight", fake_quantize_weight(layer.weight)
                yield f"{name}.bias", layer.bias


def _without_norms(classifier: Classifier) -> Classifier:
    folded = copy.deepcopy(classifier).to("meta")
    for _, convolution, norm_name, _ in list(normed_convolutions(folded)):
        convolution.bias = nn.Parameter(torch.empty(convolution.out_channels, device="meta"))
        folded.set_submodule(norm_name, nn.Identity())
    return folded
