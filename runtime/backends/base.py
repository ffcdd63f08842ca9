"""The one seam of the runtime: what every inference engine must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress, silent


class Backend(Protocol):
    """One artifact, loaded into one engine on this machine."""

    name: str

    def run(self, images: UInt8Array) -> Float32Array:
        """Logits (N, K) of images (N, H, W, 3); N is at least 1.

        Raises:
            BackendError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the engine; the backend cannot be used afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a kind of engine cannot run on this machine."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Batches:
    """How many images an engine takes at once: the fewest, the usual number, the most."""

    smallest: int = 1
    usual: int = 8
    largest: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.usual <= self.largest:
            raise ValueError(f"{self} is not in ascending order from 1")

    def __str__(self) -> str:
        return f"{self.smallest},{self.usual},{self.largest}"

    @classmethod
    def parse(cls, text: str) -> Batches:
        """Read what `str` writes; a single number stands for all three.

        Raises:
            ValueError: it is something else.
        """
        numbers = [int(part) for part in text.split(",")]
        if len(numbers) not in (1, 3):
            raise ValueError(f"{text!r} is not MIN,OPT,MAX")
        return cls(*numbers) if len(numbers) == 3 else cls(*3 * numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How an artifact is to be opened; each engine heeds what concerns it."""

    threads: int | None = None
    """On a CPU, for one inference; None for one per core."""
    batches: Batches | None = None
    """For an engine that must be built; None: whatever was built last, or the default."""
    progress: Progress = silent


DEFAULT_OPENING = OpenOptions()


AUTO = "auto"
