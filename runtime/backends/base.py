"""The interface that every inference backend implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress, silent

AUTO = "auto"
LARGEST = 4096
"""The largest batch size."""


class Backend(Protocol):
    """One artifact that is loaded into one inference engine on this machine."""

    name: str

    def run(self, images: UInt8Array) -> Float32Array:
        """Return the logits, float32 (N, K), of uint8 images (N, H, W, 3); N is at least 1.

        Raises:
            BackendError: The engine failed.
        """
        ...

    def close(self) -> None:
        """Free the engine; the backend cannot be used afterwards."""


@dataclass(frozen=True, slots=True)
class Unavailability:
    """The reason why an engine cannot run on this machine, and a hint that mends it."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Batches:
    """The batch sizes that a TensorRT engine is built for: minimum, optimum and maximum."""

    smallest: int = 1
    usual: int = 8
    largest: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.usual <= self.largest <= LARGEST:
            raise ValueError(f"{self} is not in ascending order from 1 to {LARGEST}")

    def __str__(self) -> str:
        return f"{self.smallest},{self.usual},{self.largest}"

    @classmethod
    def parse(cls, text: str) -> Batches:
        """Parse the text that `str` writes; a single number stands for all three.

        Raises:
            ValueError: The text is not of the form MIN,OPT,MAX.
        """
        numbers = [int(part) for part in text.split(",")]
        if len(numbers) not in (1, 3):
            raise ValueError(f"{text!r} is not MIN,OPT,MAX")
        return cls(*numbers) if len(numbers) == 3 else cls(*3 * numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """Options for opening an artifact; each engine uses those that apply to it."""

    threads: int | None = None
    """Threads for one inference on a CPU; None for one per core."""
    streams: int = 1
    """Equal parts of a batch that run at the same time on a CPU and share the threads."""
    batches: Batches | None = None
    """Batch sizes of a TensorRT engine; None for those of the engine that was built last, or the
    default."""
    progress: Progress = silent
    exact: bool = False
    """True to open only backends that must give the bits of the export."""
    measure: bool = False
    """True to measure the engines for CPUs before `auto` opens one, unless the cache has times."""


DEFAULT_OPTIONS = OpenOptions()
