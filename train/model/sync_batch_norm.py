"""Batch norm over the images of all processes, so that their number does not change the answer.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1; statistics of parts are joined as in
Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
variances", equation 2.1. `torch.nn.SyncBatchNorm` does the same on GPUs, and on nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics are those of the joint batch, on any device."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise this process's part (N, C, H, W) of the joint batch; N may differ."""
        if not self.training:
            return super().forward(input)
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise TypeError("only norms that keep running statistics are known here")
        values = input.to(torch.promote_types(input.dtype, torch.float32))  # bfloat16 is too coarse
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        size = mean.new_full((1,), values.numel() // values.shape[1])
        # One exchange: (C means, C variances, how many values they are of) of each process.
        parts = _Exchange.apply(torch.cat([mean, variance, size]))  # type: ignore[no-untyped-call]
        channels = len(mean)
        means, variances = parts[:, :channels], parts[:, channels:-1]
        sizes = parts[:, -1:]
        total = sizes.sum()
        joint_mean = (sizes * means).sum(0) / total
        joint_variance = (sizes * (variances + (means - joint_mean).square())).sum(0) / total
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            unbiased = joint_variance * (total / (total - 1))
            self.running_mean.lerp_(joint_mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(joint_variance + self.eps)
        shift = self.bias - joint_mean * scale
        normalised: Tensor = values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normalised.to(input.dtype)


class _Exchange(torch.autograd.Function):
    """The vectors (V,) of all processes, (count, V); each gradient goes back to its owner."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def norms_over_processes(network: nn.Module) -> None:
    """Let every batch norm of `network` count the images of all processes."""
    on_gpu = next(network.parameters()).is_cuda and dist.get_backend() == "nccl"
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _joint(child, on_gpu=on_gpu))


def _joint(norm: nn.BatchNorm2d, *, on_gpu: bool) -> nn.Module:
    if on_gpu:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
            norm
        )
        return converted
    joint = GlobalBatchNorm2d(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
    joint.load_state_dict(norm.state_dict())
    joint.requires_grad_(norm.weight.requires_grad)
    return joint.train(norm.training)
