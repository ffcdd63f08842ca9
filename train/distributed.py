"""Data-parallel training in the processes that `torchrun` starts; without it, in one process.

Source: the environment variables in PyTorch's documentation of `torch.distributed.run`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from resdeploy.errors import TrainingError
from resdeploy.filesystem import sha256
from resdeploy.machine.conditions import load_average
from resdeploy.machine.device import available_cores
from resdeploy.machine.host import Host
from resdeploy.tables import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """One of `count` training processes, and its device."""

    rank: int
    count: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None
    """Group that exchanges CPU tensors without waiting for a GPU; None for a single process."""

    @property
    def is_main(self) -> bool:
        """Return True for the process that writes files and shows progress."""
        return self.rank == 0

    def gather(self, numbers: Tensor) -> Tensor:
        """Return the tensors of all processes, float64 (count, ...); their shapes must be equal."""
        own = numbers.detach().to("cpu", torch.float64)
        if self.host_group is None:
            return own.unsqueeze(0)
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(gathered, own, group=self.host_group)
        return torch.stack(gathered)

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, in float64."""
        return self.gather(numbers).sum(0)

    def check_equal(self, what: str, value: str) -> None:
        """Check that `value` is the same text in all processes.

        Raises:
            TrainingError: A process has another value.
        """
        digest = int(sha256(value.encode(errors="surrogateescape"))[:12], 16)  # exact in float64
        digests = self.gather(torch.tensor(float(digest), dtype=torch.float64))
        if other := (digests != digests[0]).nonzero().flatten().tolist():
            raise TrainingError(
                f"process {other[0]} has other {what} than process 0",
                "give all processes the same arguments and the same files",
            )


def is_main_process() -> bool:
    """Return True if this process has rank 0; a single process has it, too."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def connect_processes() -> Iterator[Process]:
    """Yield this process, connected with the others that `torchrun` started, if any.

    Raises:
        TrainingError: The processes cannot connect, or this machine has fewer GPUs than processes.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    if count == 1:
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        if told := busy_cores(load_average(Host()), available_cores(), threads):
            logger.info("%s", told)
        yield Process(0, 1, device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"process {rank} of {count} cannot connect to the others: {error}",
            "start all processes with torchrun",
        ) from error
    try:
        host_group = dist.new_group(backend="gloo")
        assert isinstance(host_group, dist.ProcessGroup)
        yield Process(rank, count, device, host_group)
    finally:
        dist.destroy_process_group()


def busy_cores(load: float | None, cores: int, threads: int) -> str | None:
    """Return advice if `threads` would train on `cores` that other processes use.

    `load` is the load average of the last minute, None if it is not known.
    """
    if load is None or load < cores or threads == 1:
        return None
    return (
        f"the load average is {load:.1f} on {plural(cores, 'core')}: while other processes use "
        "them, the threads of PyTorch wait for each other, which can make a training ten times "
        "slower; to avoid this, stop it with Ctrl-C, and start it with OMP_NUM_THREADS=1"
    )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise TrainingError(
            f"the process of local rank {local_rank} has no GPU: this machine has {gpus}",
            f"start torchrun with --nproc-per-node {gpus}",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
