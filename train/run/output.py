"""Checks of the place of a run before its first epoch: permissions and free space."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from resdeploy.errors import OutputError
from resdeploy.filesystem import check_writable, existing_folder, refuse_existing
from resdeploy.images.preprocessing import ImageSize, pixel_count
from resdeploy.train.evaluation import MAX_MISTAKES
from resdeploy.train.run.record import STATE_JSON


def check_new_run(folder: Path, *, force: bool) -> None:
    """Check that a new run can be written to `folder`.

    Raises:
        OutputError: `folder` exists and `force` is not set, or it cannot be written.
    """
    refuse_existing(folder, force=force, marker=STATE_JSON)
    check_writable(folder / STATE_JSON)


def check_space(folder: Path, needed: int, replaced: Iterable[Path] = ()) -> None:
    """Check that `needed` bytes fit in `folder` after the files in `replaced` are deleted.

    Raises:
        OutputError: The disk has less free space.
    """
    free = shutil.disk_usage(existing_folder(folder)).free
    free += sum(path.stat().st_size for path in replaced if path.is_file())
    if free < needed:
        raise OutputError(
            f"a run in {folder} needs {needed / 1e6:.0f} MB for its state and its results, but "
            f"{free / 1e6:.0f} MB are free",
            "free some space, or choose another folder",
        )


def report_bytes(image_size: ImageSize) -> int:
    """Return the largest size of a run's report, curves and metrics, in bytes."""
    # The pictures are incompressible PNG files in base64 at worst; the rest has less than 2 MiB.
    return MAX_MISTAKES * 4 * pixel_count(image_size) + (2 << 20)
