"""Fuzz one parser with coverage guidance: python -m tests.fuzz TARGET [options of libFuzzer].

Source: the documentation of atheris (https://github.com/google/atheris) and of libFuzzer
(https://llvm.org/docs/LibFuzzer.html). New inputs are added to a corpus outside of the repository,
`.fuzz/TARGET`; an input that fails is written to `.fuzz/TARGET-crash-*`. `make fuzz` calls this for
every target.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris

SEEDS = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")
# A parser that needs more for an input of this size is at fault.
LIMITS = ("-max_len=65536", "-timeout=10", "-rss_limit_mb=2048")


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
        include=["resdeploy", "tests.fuzz", "zipfile", "tarfile"]
    ):
        from tests.fuzz.targets import TARGETS
    logging.disable(logging.CRITICAL)
    TARGETS[name](b"")  # imports what the parser needs, so that the first input is not too slow
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [f"-artifact_prefix={folder}-", *LIMITS, *options, str(folder), str(SEEDS / name)]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
