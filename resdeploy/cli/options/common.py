"""Options that several commands share."""

from __future__ import annotations

import math
import os
import pathlib
import re
from typing import Any

from click import Choice, Context, FloatRange, IntRange, Parameter, Path, option

from resdeploy.readable_text import readable


def is_plain_number(text: str) -> bool:
    """Return True unless `text` has what Python's `float` accepts beyond plain digits.

    That is white space, underscores, and digits of other scripts.
    """
    return re.fullmatch("[-+.0-9A-Za-z]+", text) is not None


def _in_words(numbers: IntRange | FloatRange) -> str:
    """Return the values of a range with a lower end, such as `0 to 100` or `1 or more`."""
    low = f"{'above ' if numbers.min_open else ''}{numbers.min:.10g}"
    if numbers.max is None:
        return low if numbers.min_open else f"{low} or more"
    return f"{low} to {'below ' if numbers.max_open else ''}{numbers.max:.10g}"


class Integers(IntRange):
    """A range of integers in plain digits; Python's `int` also takes ` 1_0 ` and other scripts."""

    name = "integer"

    def _describe_range(self) -> str:
        return _in_words(self)

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        if not re.fullmatch("[-+]?[0-9]+", str(value)):
            text = f"{readable(value)!r:.40} is not a plain integer in the range {_in_words(self)}."
            self.fail(text, param, ctx)
        return super().convert(value, param, ctx)


class LocalPath(Path):
    """A path that may be missing: functions that open it raise errors with hints. No URL."""

    def __init__(self, path_type: type[Any] = pathlib.Path) -> None:
        """Convert a path to `path_type`: `pathlib.Path`, or `str`."""
        super().__init__(path_type=path_type, readable=False)

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        is_url = re.match("[A-Za-z][A-Za-z0-9+.-]*://", str(value))
        if is_url and not os.path.lexists(value):
            text = f"{readable(value)!r} is a URL; this must be the path of a local file or folder."
            self.fail(f"{text} Download it first.", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(FloatRange):
    """A range of numbers that, unlike click's type, refuses NaN."""

    name = "number"

    def __init__(
        self, low: float, high: float | None = None, *, above: bool = False, below: bool = False
    ) -> None:
        """Accept numbers from `low` to `high`; `above` and `below` refuse these ends themselves."""
        super().__init__(low, high, min_open=above, max_open=below)

    def _describe_range(self) -> str:
        return _in_words(self)

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        try:
            float(value if is_plain_number(str(value)) else "")
        except ValueError:
            text = f"{readable(value)!r:.40} is not a plain number in the range {_in_words(self)}."
            self.fail(text, param, ctx)
        if math.isnan(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is not in the range {_in_words(self)}.", param, ctx)
        return number


LONGEST_SECONDS = 7 * 24 * 3600.0  # a week
LONGEST_WAIT_MS = 3_600_000.0  # an hour
FORCE = option("--force", is_flag=True, help="Replace an output that exists.")
BACKEND = option(
    "--backend",
    default="auto",
    help="Inference backend, such as onnxruntime-cpu; `resdeploy doctor` lists them. auto: the "
    "fastest one that can run here.",
)
PRECISION = option(
    "--precision",
    type=Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    help="Precision of the graph to use; auto: the fastest graph, or all graphs if the command "
    "compares graphs.",
)
EXACT = option(
    "--exact",
    is_flag=True,
    help="Use only int8-cpu.onnx on ONNX Runtime, and check that its logits are bit for bit those "
    "of the export.",
)
THREADS = option(
    "--threads",
    type=Integers(1, 1024),
    help="Number of CPU threads of one inference.  [default: one per core]",
)
ISSUER = option(
    "--issuer",
    metavar="URL",
    help="If the signer is an identity: URL of the OpenID Connect issuer that confirms it.",
)
WEIGHTS = option(
    "--weights",
    type=Choice(["auto", "raw", "ema"]),
    default="auto",
    help="Weights to use if the file also holds their moving average (EMA): raw: the weights; ema: "
    "the average; auto: the average if there is one.",
)
