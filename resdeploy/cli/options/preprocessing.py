"""Options for the pre-processing of a network, which `export` and `train` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from click import Choice, Context, Parameter, ParamType, option

from resdeploy.cli.options.common import FiniteRange, is_plain_number
from resdeploy.cli.options.console import PATH
from resdeploy.images.preprocessing import (
    MAX_IMAGE_SIZE,
    REDUCING_GAP,
    Channels,
    CropOffset,
    Interpolation,
    ResizeMode,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings

Function = TypeVar("Function", bound=Callable[..., Any])
NAMES = (
    "resize_mode", "crop_fraction", "crop_offset", "interpolation", "antialias", "channels",
    "value_range", "mean", "std", "reducing_gap",
)  # fmt: skip


class SizeType(ParamType):  # type: ignore[type-arg]  # click before 8.3 has no parameter
    """Side of a square, or height and width, in pixels: `224` or `224x320`."""

    name = "N|HxW"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        if not isinstance(value, str):
            return value
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
            self.fail(f"{value!r} is neither a side nor HEIGHTxWIDTH, such as 224 or 224x320")
        pixels = [int(side) for side in sides]
        for side in pixels:
            if not 8 <= side <= MAX_IMAGE_SIZE:
                self.fail(f"{side} is not in the range 8 to {MAX_IMAGE_SIZE}.", param, ctx)
        return pixels[0] if len(set(pixels)) == 1 else tuple(pixels)


class NumbersType(ParamType):  # type: ignore[type-arg]
    """One or three finite numbers, separated by commas."""

    name = "R,G,B"

    def __init__(self, *, positive: bool) -> None:
        self.positive = positive

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if not all(is_plain_number(part.strip(" ")) for part in value.split(",")):
                raise ValueError
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406", param, ctx)
        if len(numbers) not in (1, 3):
            self.fail(f"{value!r} has {len(numbers)} numbers, not 3 (or 1 for gray)", param, ctx)
        if not all(map(math.isfinite, numbers)) or (self.positive and min(numbers) <= 0):
            allowed = "finite numbers above 0" if self.positive else "finite numbers"
            self.fail(f"{value!r} does not consist of {allowed}", param, ctx)
        return numbers


_OPTIONS = (
    option(
        "--resize",
        "resize_mode",
        type=Choice([mode.value for mode in ResizeMode]),
        help="Method that resizes a picture to that size. shorter: scale the shorter side, and "
        "crop the centre; squash: scale both sides; pad: scale the longer side, and add a border; "
        "none: only crop.",
    ),
    option(
        "--crop-fraction",
        type=FiniteRange(0, 1, above=True),
        help="Part of the resized side that the crop keeps, from 0 to 1: the shorter side becomes "
        "the image size divided by this, rounded down.",
    ),
    option(
        "--crop-offset",
        type=Choice([member.value for member in CropOffset]),
        help="Rounding of the crop's position if the margins are an odd number of pixels. even: to "
        "the nearest even number, as torchvision does; down: as Hugging Face does.",
    ),
    option(
        "--interpolation",
        type=Choice([member.value for member in Interpolation]),
        help="Filter that resizes pictures.",
    ),
    option(
        "--antialias/--no-antialias",
        default=None,
        help="Widen the filter when pictures become smaller, as Pillow does, or keep its width, as "
        "OpenCV does.",
    ),
    option(
        "--channels",
        type=Choice([member.value for member in Channels]),
        help="Colour channels of the network's input, in this order.",
    ),
    option(
        "--value-range",
        type=Choice(["1", "255"]),
        help="Largest value of a pixel from which --mean is subtracted: 1, or 255 if pixels are "
        "not scaled.",
    ),
    option(
        "--mean",
        type=NumbersType(positive=False),
        help="Mean that is subtracted from each channel, in the order of --channels and the unit "
        "of --value-range.",
    ),
    option(
        "--std",
        type=NumbersType(positive=True),
        help="Standard deviation by which each channel is divided, in the same order and unit.",
    ),
    option(
        "--reduced-decoding",
        "reducing_gap",
        is_flag=True,
        default=None,
        help="Decode large JPEG pictures at 1/2, 1/4 or 1/8 of their size: faster, and almost the "
        "same pixels.  [default: as in the training, else no]",
    ),
    option(
        "--preprocessing",
        type=PATH,
        help="File that states the pre-processing: model.json of a run, config.json of timm, or "
        "preprocessor_config.json of Hugging Face. Other options override it.",
    ),
)


def preprocessing_options(*, default_size: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of the pre-processing to a command.

    `default_size` says for the help which image size the command takes by default.
    """
    size = option(
        "--image-size",
        type=SizeType(),
        metavar="N|HxW",
        help=f"Side of the input, or height and width, in pixels.  [default: {default_size}]",
    )

    def decorate(function: Function) -> Function:
        for add in reversed((size, *_OPTIONS)):
            function = add(function)
        return function

    return decorate


def take_settings(options: dict[str, Any]) -> PreprocessingSettings:
    """Remove these options, except the image size, from `options`; return them as settings."""
    values = {name: options.pop(name) for name in NAMES}
    enums = {
        "resize_mode": ResizeMode, "crop_offset": CropOffset, "interpolation": Interpolation,
        "channels": Channels,
    }  # fmt: skip
    for name, kind in enums.items():
        values[name] = None if values[name] is None else kind(values[name])
    if values["value_range"] is not None:
        values["value_range"] = int(values["value_range"])
    if values["reducing_gap"] is not None:
        values["reducing_gap"] = REDUCING_GAP
    return PreprocessingSettings(**values)
