"""The number of processes that decode images, limited by the cores and by the shared memory."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import torch

from resdeploy.errors import TrainingError
from resdeploy.images.preprocessing import ImageSize, pixel_count

logger = logging.getLogger(__name__)

MAX_WORKERS = 16  # per process, because it receives their batches one at a time
SHARED_MEMORY = "/dev/shm"  # PyTorch passes batches from process to process in files there
BATCHES_AHEAD = 2  # that a worker decodes before they are needed
PAGES = 3 * 4096  # bytes: the images, labels and flags of a batch each fill whole pages
BATCHES_IN_USE = 2  # the batch of this step, and the next one while it is received
SAVING_SECONDS = 5.0  # a step and its state; the next batch is not asked for


def default_workers() -> int:
    """Return 0 without a GPU, because the network needs the cores; otherwise all cores but one."""
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) // _local_processes()
    return min(MAX_WORKERS, max(1, cores - 1))


def outlive_first_signal(_: int) -> None:
    """Let a worker live while its training saves its state: a signal may reach a whole group.

    The DataLoader ends its workers by a message. Python ends those that do not read it by a single
    SIGTERM at its exit, and waits for them, so that a worker must not outlive it for long.
    """

    def end_later(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SAVING_SECONDS)  # SIGALRM ends the worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)


def affordable_workers(requested: int | None, image_size: ImageSize, images: Sequence[int]) -> int:
    """Return `requested` or the default, after checking that the shared memory is large enough.

    A default that is too large is reduced with a warning.

    Args:
        requested: Number of workers; None for the default.
        image_size: Size of the images, in pixels.
        images: Number of images per batch, for each set of workers.

    Raises:
        TrainingError: The shared memory is too small for `requested` workers.
    """
    batch_bytes = sum(3 * pixel_count(image_size) * count + PAGES for count in images)
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free // _local_processes()
    except OSError:  # it is missing, so PyTorch cannot pass batches
        free = 0
    most = max(0, (free // batch_bytes - BATCHES_IN_USE) // BATCHES_AHEAD)
    workers = default_workers() if requested is None else requested
    if workers <= most:
        return workers
    needed = (workers * BATCHES_AHEAD + BATCHES_IN_USE) * batch_bytes
    problem = (
        f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free, but {workers} processes that decode images "
        f"need {needed / 1e6:.1f} MB"
    )
    enlarge = f"enlarge {SHARED_MEMORY}, in Docker with --shm-size {-(-needed // 2**20)}m"
    if requested is not None:
        raise TrainingError(problem, f"use --workers {most}, or {enlarge}")
    logger.warning("%s, so resdeploy uses %d; to use all, %s", problem, most, enlarge)
    return most


@contextmanager
def unchanged_child_handler() -> Iterator[None]:
    """Restore the handler of SIGCHLD after PyTorch has started its workers.

    PyTorch's handler raises an error when a worker dies, wherever the main thread is: in the middle
    of another error, or in a function that ignores errors. `check_alive` replaces it.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def check_alive(workers: Iterable[BaseProcess]) -> None:
    """Raise a RuntimeError with PyTorch's text if a worker failed or was killed."""
    for worker in workers:
        code = worker.exitcode
        if code:
            end = f"exited unexpectedly with code {code}"
            if code < 0:
                end = f"is killed by signal: {signal.strsignal(-code)}"
            raise RuntimeError(f"DataLoader worker (pid {worker.pid}) {end}.")


def _local_processes() -> int:
    """Return the number of training processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
