"""The files of a run that could not be decoded, by any of its processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from resdeploy.images.skipped import SkippedImages
from resdeploy.train.data.dataset import DataSplits
from resdeploy.train.distributed import Process


class UnreadableFiles:
    """The positions of these files in each split, as far as this process has met them."""

    def __init__(self, splits: DataSplits, process: Process) -> None:
        self._files = {"train": splits.train.files, "val": splits.val.files}
        self._process = process
        self._positions: dict[str, set[int]] = {split: set() for split in self._files}
        self.skipped = SkippedImages()

    def add(self, split: str, reasons: Mapping[int, str]) -> None:
        """Add the files at these positions of `split`; the first ones are logged."""
        for position in sorted(reasons.keys() - self._positions[split]):
            self.skipped.add(self._files[split][position], reasons[position])
        self._positions[split].update(reasons)

    def names(self) -> list[str]:
        """Return the names of the files that any process could not decode."""
        names = []
        for split, files in self._files.items():
            mask = torch.zeros(len(files))
            mask[sorted(self._positions[split])] = 1
            found = self._process.total(mask).nonzero().flatten().tolist()
            names += [str(files[position]) for position in found]
        return names
