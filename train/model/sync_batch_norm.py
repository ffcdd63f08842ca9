"""Synchronised batch norm: its statistics are those of the images of all processes.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1; the statistics of the processes are
combined as in Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
sample variances", equation 2.1. `torch.nn.SyncBatchNorm` does the same, but only on GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A `BatchNorm2d` with the statistics of the global batch, for any device."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise this process's part (N, C, H, W) of the batch; N may differ among processes."""
        if not self.training:
            return super().forward(input)
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise TypeError("GlobalBatchNorm2d needs running statistics and a momentum")
        # bfloat16 is too coarse for the statistics.
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        size = mean.new_full((1,), values.numel() // values.shape[1])
        # One exchange of C means, C variances and the number of values of each process.
        parts = _Gather.apply(torch.cat([mean, variance, size]))  # type: ignore[no-untyped-call]
        means, variances, sizes = parts.split([len(mean), len(mean), 1], 1)
        total = sizes.sum()
        global_mean = (sizes * means).sum(0) / total
        global_variance = (sizes * (variances + (means - global_mean).square())).sum(0) / total
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            unbiased = global_variance * (total / (total - 1))
            self.running_mean.lerp_(global_mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(global_variance + self.eps)
        shift = self.bias - global_mean * scale
        normalised: Tensor = values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normalised.to(input.dtype)


class _Gather(torch.autograd.Function):
    """A differentiable all-gather: vectors (V,) of the processes -> (processes, V)."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor) -> Tensor:
        parts = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, vector)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def synchronize_batch_norms(network: nn.Module) -> None:
    """Replace every batch norm of `network` by a synchronised one."""
    if next(network.parameters()).is_cuda and dist.get_backend() == "nccl":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.BatchNorm2d:
                synchronized = GlobalBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                synchronized.to(norm.weight).load_state_dict(norm.state_dict())
                synchronized.requires_grad_(norm.weight.requires_grad).train(norm.training)
                setattr(module, name, synchronized)
