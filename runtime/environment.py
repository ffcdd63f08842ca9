"""What a result says of how it came about: when, by which command, with what, on which machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from resdeploy.documents import parse
from resdeploy.provenance import collect_provenance
from resdeploy.runtime.conditions import Conditions
from resdeploy.runtime.device import read_device
from resdeploy.runtime.jetson import Jetson
from resdeploy.runtime.nvml import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The form that `Device.to_json` has."""

    architecture: str | None = None
    cpu: str | None = None
    cpu_features: tuple[str, ...] = ()
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    jetson: Jetson | None = None
    container: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def name(self) -> str:
        """What decides how fast it is: the board, or processor, cores and GPUs."""
        if self.jetson:
            return self.jetson.board
        cores = () if self.cores is None else (f"{self.cores} cores",)
        processor = self.cpu or self.architecture or "unknown machine"
        return ", ".join((processor, *cores, *(gpu.name for gpu in self.gpus)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What `collect_provenance` collects, the machine, and what was run."""

    date: str
    """ISO 8601."""
    command: str
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    platform: str = ""
    device: Machine = field(default_factory=Machine)
    model: str | None = None
    image_size: int | None = None
    bundle: str | None = None
    mode: str | None = None
    """Of a benchmark: `stream`, `offline`, `end-to-end`."""


def here(**what: Any) -> Environment:
    """This machine, now; `what` fills the fields that it cannot tell."""
    return parse(Environment, collect_provenance(read_device().to_json()) | what)
