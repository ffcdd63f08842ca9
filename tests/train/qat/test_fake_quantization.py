"""Tests of fake quantisation against the quantisation of the exported graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import quantize_weight as integers_of
from resdeploy.calibration.scales import symmetric_parameters
from resdeploy.train.qat.fake_quantization import (
    fake_quantize_activation,
    fake_quantize_weight,
    round_up_to_float16,
)


@given(st.floats(2.0**-20, 1000.0, width=32))
def test_scales_are_those_of_the_exported_graph(scale: float) -> None:
    largest = 127 * scale
    expected = symmetric_parameters(Range(low=0, high=largest), half=True).scale
    assert float(round_up_to_float16(torch.tensor(largest / 127, dtype=torch.float32))) == expected


def test_weights_are_those_of_the_exported_graph() -> None:
    weight = np.random.default_rng(0).normal(0, 0.1, (8, 4, 3, 3)).astype(np.float32)
    weight[3] = 0
    integers, scales = integers_of(weight, half=True)
    ours = fake_quantize_weight(torch.from_numpy(weight)).numpy()
    # Training adds the rounding error to the weight and the graph multiplies integer and scale, so
    # they differ by one float32 rounding.
    np.testing.assert_allclose(ours, integers * scales.reshape(-1, 1, 1, 1), atol=1e-7)


def test_gradients_of_activations_and_scales() -> None:
    activation = torch.tensor([[0.2, 0.7, 200.0]], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    quantized = fake_quantize_activation(activation, scale)
    assert quantized.tolist() == [[0, 1, 127]]
    quantized.sum().backward()  # type: ignore[no-untyped-call]
    assert activation.grad is not None
    assert scale.grad is not None
    assert activation.grad.tolist() == [[1, 1, 0]]
    # LSQ, equation 3: the rounding error inside the range, and the largest integer outside.
    expected = (-0.2 + 0.3 + 127) / np.sqrt(3 * 127)
    assert float(scale.grad) == pytest.approx(expected, rel=1e-6)
