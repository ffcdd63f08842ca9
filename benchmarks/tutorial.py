"""The generator of the outputs in `docs/tutorial.md`.

    python -m benchmarks.tutorial

It runs the command of each block after `<!-- run -->`, in a new folder with the handwritten digits
as `photos/`, and writes what the command prints below it, and the date. It takes some minutes, and
prints how long each command took. If that is much longer than its time on the CPU, other programs
use the machine, and the speeds in the outputs are too low. PyTorch has one thread unless the
variable OMP_NUM_THREADS says otherwise: while other programs use the cores, several threads wait
for each other, and training was ten times slower with two.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

from resdeploy.filesystem import write_file
from resdeploy.train.data.synthetic_digits import digits_folder

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
COLUMNS = 110  # of the page; longer messages are wrapped, as in a terminal
DATE = re.compile(r"(?<=The outputs were written on )[0-9-]+")
BLOCK = re.compile(r"<!-- run -->\n```\n\$ (resdeploy [^\n]+)\n(.*?)```\n", re.DOTALL)
# The reader's terminal shows bars in place of the lines of progress of a log.
COMMAND = """
import math
from resdeploy import progress
progress.LINE_SECONDS = math.inf
from resdeploy.cli import main
main(prog_name="resdeploy")
"""


def fill_outputs(page: str, folder: Path) -> str:
    """Return the page with the outputs of its commands, which run in `folder` one after another.

    Raises:
        CalledProcessError: A command failed.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}

    def run(match: re.Match[str]) -> str:
        arguments = shlex.split(match[1])[1:]
        start, used = time.monotonic(), children_seconds()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], cwd=folder, check=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        seconds, processor = time.monotonic() - start, children_seconds() - used
        print(f"{seconds:.0f} s, {processor:.0f} s of the CPU: {match[1]}", file=sys.stderr)
        output = done.stdout.replace(f"{folder}/", "").replace(str(Path.home()), "~")
        return f"<!-- run -->\n```\n$ {match[1]}\n{wrap_messages(output.strip())}\n```\n"

    return DATE.sub(datetime.now(UTC).date().isoformat(), BLOCK.sub(run, page))


def children_seconds() -> float:
    """Return the time that all commands so far spent on processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wrap_messages(output: str) -> str:
    """Return an output without messages of more than `COLUMNS` characters; tables keep theirs."""
    lines = []
    for line in output.splitlines():
        in_table = "  " in line
        wrapped = textwrap.wrap(line, COLUMNS, break_long_words=False, break_on_hyphens=False)
        lines += [line] if in_table else wrapped or [""]
    return "\n".join(lines)


def main() -> None:
    """Write the outputs into `docs/tutorial.md`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(digits_folder(), folder / "photos")
        text = fill_outputs(TUTORIAL.read_text(encoding="utf-8"), folder)
    write_file(TUTORIAL, text.encode())


if __name__ == "__main__":
    main()
