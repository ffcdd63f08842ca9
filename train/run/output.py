"""Checks of the place of a run before its first epoch: permissions and free space."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resdeploy.errors import OutputError, one_line_reason
from resdeploy.file_locks import release_lock, take_lock
from resdeploy.filesystem import check_writable, existing_folder, refuse_existing, tidy_up
from resdeploy.images.class_folders import split_folder
from resdeploy.images.preprocessing import ImageSize, pixel_count
from resdeploy.train.config import DIGITS
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import MAX_MISTAKES
from resdeploy.train.run.record import STATE_JSON

logger = logging.getLogger(__name__)


def check_new_run(folder: Path, *, force: bool) -> None:
    """Check that a new run can be written to `folder`.

    Raises:
        OutputError: `folder` exists and `force` is not set, or it cannot be written.
    """
    tidy_up(folder / STATE_JSON)  # of a run that was killed when it began
    refuse_existing(folder, force=force, marker=STATE_JSON)
    check_writable(folder / STATE_JSON)


def check_outside(folder: Path, data: str) -> None:
    """Check that a run folder does not lie among the images, where it would be a class.

    Raises:
        OutputError: `folder` is in the folder of the training images.
    """
    if data != DIGITS and split_folder(Path(data), "train").resolve() in folder.resolve().parents:
        raise OutputError(
            f"the run folder {folder} is among the images of {data}", "choose another one with -o"
        )


@contextmanager
def locked_run(
    folder: Path, process: Process, *, force: bool = False, resumed: bool = False
) -> Iterator[None]:
    """Create a run folder if it is missing, and keep other trainings out of it.

    A run that another training has written since `check_new_run` is an error, unless `force` is set
    or the run is `resumed`.
    Only the main process of a training holds the lock.

    Raises:
        OutputError: Another process trains in this folder, or it cannot be created.
    """
    if not process.is_main:
        yield
        return
    other = "stop it with Ctrl-C first" if resumed else "choose another folder with -o"
    lock, hint = -1, f"wait until it ends, or {other}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder.resolve())
    except BlockingIOError as error:
        raise OutputError(f"another training writes to {folder}", hint) from error
    except OSError as error:
        if not folder.is_dir():
            raise OutputError(f"cannot write {folder}: {one_line_reason(error)}", hint) from error
        logger.warning(
            "%s cannot be locked, so nothing keeps another training out of it: %s",
            folder, one_line_reason(error),
        )  # fmt: skip
    try:
        if not (force or resumed) and (folder / STATE_JSON).exists():
            raise OutputError(f"another training has written {folder} meanwhile", hint)
        yield
    finally:
        release_lock(lock)
        with suppress(OSError):
            folder.rmdir()  # if nothing was written


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
