"""The choice of a pre-processing from what options, files and a checkpoint state.

Each setting comes from the first source that states it. What no source states is assumed, and
everything that reports the choice says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resdeploy.errors import DataError
from resdeploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    ImageSize,
    Preprocessing,
    ResizeMode,
    height_and_width,
    numbers_text,
    size_text,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings, option_for

ASSUMED = "assumed"
DEFAULT_IMAGE_SIZE = 224  # in pixels
# The settings that a report names, in its order; the others follow from the tool that trained.
REPORTED = (
    "image_size", "resize_mode", "resize", "interpolation", "channels", "value_range", "mean",
    "std",
)  # fmt: skip
# The averages of ImageNet's three, as is usual for networks with one channel.
_GRAY: dict[str, tuple[float, ...]] = {"mean": (0.449,), "std": (0.226,)}
_SMALL = 128  # images below this side are not cropped, as is usual for CIFAR


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedSettings:
    """Settings of one source, and its name."""

    settings: PreprocessingSettings
    place: str
    """The source in words, such as `an option` or `config.json beside the weights`."""
    is_option: bool = False
    """True for the command line, whose settings may contradict those of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPreprocessing:
    """A complete pre-processing, and where each setting comes from."""

    preprocessing: Preprocessing
    origins: dict[str, str]
    """The place of each setting in `REPORTED`; `ASSUMED` if no source stated it."""
    contradictions: tuple[str, ...] = ()
    """Sentences about options that contradict what the checkpoint states."""

    @property
    def assumed(self) -> tuple[str, ...]:
        """Return the settings that no source stated."""
        return tuple(name for name in REPORTED if self.origins[name] == ASSUMED)


def choose_preprocessing(
    sources: Sequence[StatedSettings],
    *,
    default_size: int = DEFAULT_IMAGE_SIZE,
    default_channels: Channels = Channels.RGB,
) -> ChosenPreprocessing:
    """Combine the sources, the most important one first.

    Raises:
        DataError: The settings contradict each other, or are out of range.
    """
    stated = {name: _first(sources, name) for name in PreprocessingSettings.__dataclass_fields__}
    values = {name: getattr(found.settings, name) for name, found in stated.items() if found}
    size = values.setdefault("image_size", default_size)
    mode = values.setdefault("resize_mode", ResizeMode.SHORTER)
    values.setdefault("channels", default_channels)
    values["resize"], crop = _resized(sources, size, mode)
    values.pop("crop_fraction", None)
    origins = {
        name: found.place if (found := stated.get(name)) else ASSUMED for name in REPORTED
    } | {"resize": crop.place if crop else ASSUMED}
    if mode in (ResizeMode.NONE, ResizeMode.SQUASH) and crop is None:
        origins["resize"] = origins["resize_mode"]  # these modes need no margin
    values |= _normalisation(stated, values["channels"])
    try:
        preprocessing = Preprocessing(**values)
    except ValueError as error:
        raise DataError(
            f"the pre-processing is not possible: {error}", "change the options"
        ) from error
    return ChosenPreprocessing(
        preprocessing=preprocessing,
        origins=origins,
        contradictions=tuple(_contradictions(sources)),
    )


def resize_for(size: ImageSize, fraction: float) -> ImageSize:
    """Return the size before a crop that keeps `fraction` of each side, rounded down.

    Source: timm/data/transforms_factory.py, transforms_imagenet_eval.
    """
    if isinstance(size, tuple):
        return _margin(size[0], fraction), _margin(size[1], fraction)
    return _margin(size, fraction)


def _first(sources: Sequence[StatedSettings], name: str) -> StatedSettings | None:
    return next((s for s in sources if getattr(s.settings, name) is not None), None)


def _resized(
    sources: Sequence[StatedSettings], size: ImageSize, mode: ResizeMode
) -> tuple[ImageSize, StatedSettings | None]:
    """Return the size before the crop, and the source that states it."""
    if mode is ResizeMode.NONE:
        if any(s.is_option and s.settings.crop_fraction is not None for s in sources):
            reason = "--crop-fraction has no effect without a resize"
            raise DataError(reason, "leave it out, or choose another --resize than none")
        return size, None
    for source in sources:
        settings = source.settings
        if settings.resize_mode not in (None, mode):
            continue  # the margin of another mode means something else
        if settings.resize_mode is None and mode is not ResizeMode.SHORTER and not source.is_option:
            continue
        if settings.crop_fraction is not None:
            return resize_for(size, settings.crop_fraction), source
        if settings.resize is not None:
            own = settings.image_size
            if own is None or own == size:
                return settings.resize, source
            # Another size keeps the proportions, such as 256 for 224 pixels and 329 for 288.
            (height, width), (old_height, old_width) = map(height_and_width, (size, own))
            rows, columns = height_and_width(settings.resize)
            return (height * rows // old_height, width * columns // old_width), source
    small = min(height_and_width(size)) < _SMALL
    fraction = 0.875 if mode is ResizeMode.SHORTER and not small else 1.0
    return resize_for(size, fraction), None


def _normalisation(
    stated: Mapping[str, StatedSettings | None], channels: Channels
) -> dict[str, Any]:
    """Return value range, mean and std in the order of the network's channels."""
    scale = stated["value_range"]
    value_range = (scale.settings.value_range if scale else None) or 1
    values: dict[str, Any] = {"value_range": value_range}
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        source = stated[name]
        numbers: tuple[float, ...] = getattr(source.settings, name) if source else default
        if source is None and channels is Channels.GRAY:
            numbers = _GRAY[name]
        order = source.settings.channels or channels if source else Channels.RGB
        own_range = source.settings.value_range if source else 1
        if own_range is None and not (source and source.is_option):
            own_range = 1  # as all libraries mean it; larger numbers are refused below
        if own_range not in (None, value_range):
            raise DataError(
                f"the range of the pixel values is 0 to {value_range}, but {name} "
                f"{numbers_text(numbers)} is for 0 to {own_range}",
                "give --mean and --std, too, in the same range; 0,0,0 and 1,1,1 change nothing",
            )
        if source and name == "mean" and max(numbers) > value_range:
            raise DataError(
                f"mean {numbers_text(numbers)} from {source.place} is above the largest pixel "
                f"value {value_range}",
                "add --value-range 255 if the pixels of the training were not divided by 255",
            )
        if channels is not Channels.GRAY and len(numbers) == 1:
            numbers = numbers * 3
        elif channels is Channels.GRAY and len(set(numbers)) == 1:
            numbers = numbers[:1]
        elif channels is Channels.GRAY and len(numbers) == 3:
            place = source.place if source else ASSUMED
            raise DataError(
                f"the input is grey, but {name} {numbers_text(numbers)} from {place} has three "
                "values",
                f"give the number of the grey channel, such as --{name} {_GRAY[name][0]}",
            )
        elif Channels.GRAY not in (order, channels) and order is not channels:
            numbers = numbers[::-1]
        values[name] = numbers
    return values


def _contradictions(sources: Sequence[StatedSettings]) -> list[str]:
    """Return a sentence for each setting of an option that the checkpoint contradicts."""
    others = [source for source in sources if not source.is_option]
    sentences = []
    for name in (*REPORTED, "crop_fraction"):
        option = _first([source for source in sources if source.is_option], name)
        other = _first(others, name)
        if option is None or other is None or name == "resize":
            continue
        one, two = (getattr(source.settings, name) for source in (option, other))
        if _distinct(one) != _distinct(two):
            sentences.append(
                f"{option_for(name)} {_text(one)} is used instead of {_text(two)} "
                f"(from {other.place})"
            )
    return sentences


def _distinct(value: Any) -> Any:
    """Return one number for equal numbers, such as those of all channels."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _margin(side: int, fraction: float) -> int:
    # Rounded first, because 224 / 0.56 is 399.99999999999994 in floating point.
    return math.floor(round(side / fraction, 6))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return size_text(value) if isinstance(value[0], int) else numbers_text(value)
    return str(getattr(value, "value", value))
