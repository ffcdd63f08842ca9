"""The check of a changed bundle in a process of its own, before the server loads the same bytes.

A bundle may crash an engine, never end, or need endless memory. So a process with limits loads it
with the settings of the server, and answers with a line of JSON. Then the server loads what passed:
the same manifest, with the sha256 of all files, and as many instances of the same engine and graph.
The process is no sandbox: it may access what the server may. Sources: setrlimit(2), proc(5).
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import resource
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.signature import PASSWORD, open_signed
from resdeploy.errors import BundleError, is_out_of_memory, one_line_reason, remedy_for
from resdeploy.json_documents import decode, jsonable, one_line
from resdeploy.machine.device import available_memory, parse_memory
from resdeploy.machine.host import Host
from resdeploy.machine.python_process import end_with_parent, python_command
from resdeploy.runtime.serving.config import TOKEN_VARIABLE, ServeConfig

logger = logging.getLogger(__name__)

# An instance of ResNet-34 in FP32 takes 0.2 GiB. A quarter of the free memory is left for requests.
MAX_BYTES = 8 << 30
# All threads together: an endless loop on 16 cores ends after a minute, and one on one core with
# `server.RELOAD_SECONDS`. Building an engine for a GPU takes minutes, most of them on one core.
CPU_SECONDS = 900
NICE = 5  # a third of the processor time of a thread that serves, if both want all of it: sched(7)
MAX_TEXT = 8000  # characters of the log, and of the reason
NOT_INHERITED = {TOKEN_VARIABLE, PASSWORD, "NOTIFY_SOCKET"}
MODULE = "resdeploy.runtime.serving.loading_process"
HINT = "run resdeploy verify; do not serve a bundle of unknown origin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingResult:
    """The answer of the process: what it loaded, or why it could not."""

    digest: str = ""
    """SHA-256 of the manifest."""
    opened: tuple[str, str, int] | None = None
    """Engine, graph, and number of instances; None if the bundle is unchanged."""
    error: str = ""
    hint: str | None = None
    log: str = ""
    """Lines that name the engines that failed."""


async def check_loading(path: Path, config: ServeConfig, current: str | None) -> LoadingResult:
    """Load a bundle in a process with limits, unless its manifest has the sha256 `current`.

    The caller limits the time: when this is cancelled, the process is killed.

    Raises:
        BundleError: The bundle cannot be loaded, or the process reached a limit or crashed.
    """
    process = await asyncio.create_subprocess_exec(
        *python_command(MODULE, os.getpid()), stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
        env={name: text for name, text in os.environ.items() if name not in NOT_INHERITED},
    )  # fmt: skip
    try:
        answer, _ = await process.communicate(pickle.dumps((path, config, current)))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    if not answer:
        code = process.returncode or 0
        end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        if code == -signal.SIGXCPU:
            end += f", after {CPU_SECONDS} s of processor time"
        raise BundleError(f"{path}: the process that loaded it ended with {end}", HINT)
    result = decode(LoadingResult, answer)
    if result.error:
        for line in result.log.splitlines():
            logger.warning("%s", line)
        raise BundleError(result.error, result.hint)
    return result


def main() -> None:
    """Load the bundle that the server names, within limits, and answer."""
    end_with_parent()
    if os.getppid() != int(sys.argv[1]):  # the server ended earlier
        return
    answers = os.dup(sys.stdout.fileno())  # messages that libraries print must not mix with it
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    log = io.StringIO()
    logging.basicConfig(stream=log, format="%(message)s")
    limit = _limit_resources()
    try:
        result = asyncio.run(_load(*pickle.load(sys.stdin.buffer)))
    except Exception as error:
        reason = one_line_reason(error)
        if is_out_of_memory(error):
            reason = f"loading it takes more than {limit >> 20} MiB of memory ({reason})"
        hint = getattr(error, "hint", None) or remedy_for(error, HINT)
        result = LoadingResult(error=reason[:MAX_TEXT], hint=hint, log=log.getvalue()[-MAX_TEXT:])
    os.write(answers, one_line(jsonable(result)).encode() + b"\n")
    os._exit(0)  # engines may hang or crash when they are closed


def _limit_resources() -> int:
    """Limit this process, and return the limit of its memory in bytes."""
    free = available_memory(Host())
    limit = MAX_BYTES if free is None else min(MAX_BYTES, max(0, free) * 3 // 4)
    total = limit + (parse_memory(Host().text("proc/self/status"), "VmData") or 0)
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # there are lower limits already
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))
        Path("/proc/self/oom_score_adj").write_text("1000")  # so that the server is not ended
    return limit


async def _load(path: Path, config: ServeConfig, current: str | None) -> LoadingResult:
    from resdeploy.runtime.serving.served_model import ServedModel  # it imports this module

    if open_signed(path, config.signer).digest == current:
        return LoadingResult()
    model = ServedModel(path.name, path, config)
    await model.load()
    loaded = model.loaded_bundle()
    first, *others = loaded.batcher.instances
    opened = first.backend, first.artifact, 1 + len(others)
    return LoadingResult(digest=loaded.bundle.digest, opened=opened)


if __name__ == "__main__":
    main()
