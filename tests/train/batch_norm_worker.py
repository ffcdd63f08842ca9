"""A process that `test_distributed.py` forks, for synchronised batch norm."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from resdeploy.train.model.sync_batch_norm import synchronize_batch_norms

PARTS = (3, 5)  # images of each process
SHAPE = (4, 2, 3)


def global_batch() -> torch.Tensor:
    """Return images far from zero, for which sums of squares would lose precision."""
    generator = torch.Generator().manual_seed(0)
    return 1e4 + torch.randn(sum(PARTS), *SHAPE, generator=generator, dtype=torch.float64)


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(SHAPE[0])).double().train()


def loss_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = network(images)
    return (outputs**3).sum()  # a power, so that the gradients of all images differ


def main() -> None:
    dist.init_process_group("gloo")
    network = make_network()
    synchronize_batch_norms(network)
    images = torch.split(global_batch(), list(PARTS))[dist.get_rank()].requires_grad_()
    loss_of(network, images).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    torch.save(
        {"input": images.grad, "weight": network[0].weight.grad, "state": network.state_dict()},
        Path(sys.argv[1]) / f"{dist.get_rank()}.pth",
    )
    dist.destroy_process_group()
