"""Python programs in processes of their own, forked from one that has imported PyTorch.

Importing it, with what a training and an export need, takes 4 s of processor time. The process that
is forked is neither pytest nor one of its workers, so nothing of a test is in its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "onnxruntime",
        "torch._dynamo",
        "torch.distributed",
        "resdeploy.export.pipeline",
        "resdeploy.train.trainer",
        "resdeploy.cli",
    ]
)
# Limits files to 1 MiB, like a quota.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
COMMAND = 'from resdeploy.cli import main; main(prog_name="resdeploy")'


class Forked:
    """A program that runs in the current folder with one thread; see `subprocess.Popen`."""

    def __init__(
        self, *arguments: object, code: str = COMMAND, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._output, self._errors = (Path(self._folder.name) / name for name in ("out", "err"))
        self._process = _CONTEXT.Process(
            target=_run,
            args=(
                code, ["-c", *map(str, arguments)], os.getcwd(),
                {**os.environ, **(environment or {})}, self._output, self._errors,
            ),
        )  # fmt: skip
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or the negative number of the signal that ended the process."""
        return self._process.exitcode

    def communicate(self, timeout: float = 1200) -> tuple[str, str]:
        """Return what the program wrote, when it has ended."""
        self._process.join(timeout)
        assert self.returncode is not None, "the process does not end"
        written = self._output.read_text(), self._errors.read_text()
        self._folder.cleanup()
        return written


def _run(
    code: str, arguments: list[str], folder: str, environment: dict[str, str], *outputs: Path
) -> None:
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # the default, not that of this process
    # A shell starts background processes, such as `make test &`, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = arguments

    import torch

    torch.set_num_threads(1)
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
