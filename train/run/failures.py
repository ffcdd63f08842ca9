"""The reasons for which training stops, in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resdeploy.errors import Interrupted, OutputError, Terminated, TrainingError
from resdeploy.train.checkpoint.run import resume_command, ways_to_go_on
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import SECONDS_PER_BATCH
from resdeploy.train.run.folder import STATE_FILE, RunPosition, load_state
from resdeploy.train.run.interruption import StopRequest, awaited_stop

_WORKERS = "to continue with fewer: {resume} --workers 1"
# Texts in the errors of PyTorch 2.13, each with the reason and its remedy; the first match counts.
_REASONS = (
    (
        r"shared memory\(shm\)|workers are out of shared memory|signal: Bus error",
        "the processes that decode images ran out of shared memory in /dev/shm",
        f"{_WORKERS}, or enlarge /dev/shm, in Docker with --shm-size",
    ),
    (
        r"DataLoader worker \(pid (?P<pid>\d+)\) is killed by signal: Killed",
        "process {pid}, which decoded images, was killed, as happens when the memory runs out",
        _WORKERS,
    ),
    (
        r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<end>[^.]*)",
        "process {pid}, which decoded images, {end}",
        _WORKERS,
    ),
    (
        r"(?s)in DataLoader worker process \d+\..*\n(?P<last>\S[^\n]*)",
        "a process that decodes images failed: {last}",
        "to continue without such processes: {resume} --workers 0",
    ),
    (
        r"DataLoader timed out",
        f"no batch of images was decoded in {SECONDS_PER_BATCH} seconds",
        "check that the storage of the images responds; to continue: {resume}",
    ),
    (
        r"Too many open files",
        "too many files are open",
        "raise the limit with ulimit -n 4096; to continue: {resume}",
    ),
    (
        r"(?i)gloo|nccl|closed by peer|connection reset",
        "the connection to another training process was lost",
        "see the message of the process that stopped first; to continue, give torchrun --resume",
    ),
    (
        r"(?i)out of memory|can't allocate memory|cannot allocate memory",
        "the memory of the GPU or of this machine is too small",
        "start again with a smaller --batch-size, or with --accumulate 2 or more",
    ),
)


@contextmanager
def explained_failures(
    folder: Path, saved: Callable[[], RunPosition], log: Callable[..., None], alone: bool = False
) -> Iterator[StopRequest]:
    """Yield the request to stop the run in `folder`; explain its errors and interruptions.

    Args:
        folder: Run folder.
        saved: Returns the position of the newest saved state.
        log: Receives the message after an interruption.
        alone: See `awaited_stop`.

    Raises:
        Interrupted: A signal ended the training.
        OutputError: A file cannot be written.
        TrainingError: PyTorch failed for a reason that a user can mend.
    """
    resume = resume_command(folder)
    try:
        with awaited_stop(alone=alone) as request:
            yield request
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, (Interrupted, Terminated)) else 1
        lost = "" if isinstance(stop, Interrupted) else " (what came later is lost)"
        message = f"{'interrupted' if code == 1 else 'terminated'}; saved after {saved()}{lost}; "
        message += ways_to_go_on(folder)
        log("%s", message)
        raise Interrupted(message, code) from stop
    except OutputError as error:
        raise OutputError(
            f"{error}; the state after {saved()} is kept",
            f"free some space or mend the permissions, then continue: {resume}",
        ) from error
    except (RuntimeError, OSError, MemoryError) as error:
        if reason := explain_failure(error, resume):
            raise reason from error
        raise


def explain_failure(error: Exception, resume: str) -> TrainingError | None:
    """Return an error that a user can mend for one of PyTorch's; None for an unknown error.

    `resume` is the command that continues the run.
    """
    if isinstance(error, ConnectionError):  # a pipe to a worker; torchrun's are RuntimeErrors
        message = "a process that decoded images was killed, as happens when the memory runs out"
        return TrainingError(message, _WORKERS.format(resume=resume))
    text = "out of memory" if isinstance(error, MemoryError) else str(error)
    for pattern, message, hint in _REASONS:
        if match := re.search(pattern, text):
            facts = match.groupdict() | {"resume": resume}
            return TrainingError(message.format(**facts), hint.format(**facts))
    return None


def divergence(
    config: TrainingConfig, folder: Path, *, epoch: int, step: int, loss: float
) -> TrainingError:
    """Return the error for a loss that is NaN or infinite, with the position of the saved state."""
    saved = load_state(folder).position
    return TrainingError(
        f"the loss is {loss} in epoch {epoch}, step {step}; {folder / STATE_FILE} holds the last "
        f"state before it, after {saved}",
        f"start again with an --lr below {config.lr:g}",
    )
