"""Tests of the trimmed convolution against `nn.Conv2d`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from resdeploy.train.model.padding_skipping_conv import TrimmedConv2d, used_taps


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2),
    st.integers(1, 2),
)  # fmt: skip
def test_outputs_and_gradients_equal_those_of_the_whole_kernel(
    height: int, width: int, kernel: int, stride: int, padding: int, groups: int
) -> None:
    if min(height, width) + 2 * padding < kernel:
        return
    torch.manual_seed(height * 100 + width)
    whole = nn.Conv2d(2, 4, kernel, stride, padding, groups=groups).double()
    trimmed = TrimmedConv2d(2, 4, kernel, stride, padding, groups=groups).double().train()
    trimmed.load_state_dict(whole.state_dict())
    images = torch.randn(2, 2, height, width, dtype=torch.float64)
    outputs = []
    for conv in (whole, trimmed):
        x = images.clone().requires_grad_()
        out = conv(x)
        out.square().sum().backward()
        assert x.grad is not None
        assert conv.weight.grad is not None
        outputs.append((out, x.grad, conv.weight.grad))
    for expected, found in zip(*outputs):
        # Another order of at most 50 products of numbers near 1 changes far less than 1e-12.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [(1, 1, (1, 2, 0)), (2, 2, (1, 3, 0)), (1, 2, (1, 2, 0)), (2, 1, (0, 3, 1)), (7, 2, (0, 3, 1))],
)
def test_the_used_taps_of_a_3x3_kernel(
    size: int, stride: int, expected: tuple[int, int, int]
) -> None:
    assert used_taps(size, 3, stride, 1) == expected
