"""The processes that train one network together, as `torchrun` starts them; usually just one.

Source: torchrun's environment variables, PyTorch's documentation of `torch.distributed.run`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from resdeploy.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Process:
    """This process among `count`, and the device that it computes on."""

    rank: int
    count: int
    device: torch.device
    host: dist.ProcessGroup | None = None
    """Exchanges numbers without waiting for a GPU; None where there is one process."""

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers of every process: any shape, the same everywhere -> float64 (count, ...)."""
        mine = numbers.detach().to("cpu", torch.float64)
        if self.host is None:
            return mine.unsqueeze(0)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(everyone, mine, group=self.host)
        return torch.stack(everyone)

    def total(self, numbers: Tensor) -> Tensor:
        """Their sums over the processes, in float64."""
        return self.gather(numbers).sum(0)


def is_first() -> bool:
    """Whether this is the only process, or the one of several that answers for all."""
    return _rank() == 0


@contextmanager
def joined_processes() -> Iterator[Process]:
    """This process with those that `torchrun` started beside it; alone where it started none.

    Raises:
        TrainingError: the processes cannot find each other, or there are more than GPUs.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), _rank()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    if count == 1:
        yield Process(0, 1, device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"process {rank} of {count} cannot join the others: {error}",
            "start all of them with torchrun",
        ) from error
    try:
        host = dist.new_group(backend="gloo")
        if not isinstance(host, dist.ProcessGroup):
            raise TrainingError("the processes have no group", "start all of them with torchrun")
        yield Process(rank, count, device, host)
    finally:
        dist.destroy_process_group()


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise TrainingError(
            f"process {local_rank} of this machine has no GPU: there are {gpus}",
            f"start torchrun with --nproc-per-node {gpus}",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
