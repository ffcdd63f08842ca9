"""The choice of a pre-processing from what options, files and a checkpoint state.

Each setting comes from the first source that states it. What no source states is assumed, and
everything that reports the choice says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    usual_fraction,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.images.preprocessing_text import setting_texts

ASSUMED = "assumed"
DEFAULT_IMAGE_SIZE = 224  # in pixels
# The settings that a report names, in its order; the others follow from the tool that trained.
REPORTED: tuple[str, ...] = (
    "image_size", "resize_mode", "resize", "interpolation", "channels", "value_range", "mean",
    "std",
)  # fmt: skip
# The averages of ImageNet's three, as is usual for networks with one channel.
_GRAY: dict[str, tuple[float, ...]] = {"mean": (0.449,), "std": (0.226,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedSettings:
    """Settings of one source, and its name."""

    settings: PreprocessingSettings
    place: str
    """The source in words, such as `an option` or `config.json beside the weights`."""
    is_option: bool = False
    """True for the command line."""
    is_checkpoint: bool = False
    """True for the checkpoint and the files beside it, which all others may contradict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPreprocessing:
    """A complete pre-processing, and where each setting comes from."""

    preprocessing: Preprocessing
    origins: dict[str, str]
    """The place of each setting in `REPORTED`; `ASSUMED` if no source stated it."""
    contradiction: str | None = None
    """A sentence about what is used instead of what the checkpoint states."""

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
    choice = _combine(sources, default_size, default_channels)
    own = [source for source in sources if source.is_checkpoint]
    if not own or len(own) == len(sources):
        return choice
    # In the size that is used, so that the margins before the crop can be compared.
    size = PreprocessingSettings(image_size=choice.preprocessing.image_size)
    try:
        alone = _combine([StatedSettings(settings=size, place=ASSUMED), *own], 0, default_channels)
    except DataError:  # such as a mean of three values for a grey input
        return choice
    sized, own_size = (_first(some, "image_size") for some in (sources, own))
    if sized is None or sized.is_option:
        own_size = None  # any size is possible, so an option for it is no contradiction
    return replace(choice, contradiction=_contradiction(choice, alone, own_size))


def _combine(
    sources: Sequence[StatedSettings], default_size: int, default_channels: Channels
) -> ChosenPreprocessing:
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
    return ChosenPreprocessing(preprocessing=preprocessing, origins=origins)


def resize_for(size: ImageSize, fraction: float) -> ImageSize:
    """Return the size before a crop that keeps `fraction` of each side, rounded down.

    Source: timm/data/transforms_factory.py, transforms_imagenet_eval.
    """
    if isinstance(size, tuple):
        return _margin(size[0], fraction), _margin(size[1], fraction)
    return _margin(size, fraction)


def describe_choice(preprocessing: Preprocessing, origins: Mapping[str, str]) -> str:
    """Return the settings as a line, those of one origin together."""
    texts = setting_texts(preprocessing)
    groups: dict[str, list[str]] = {}
    for name, text in texts.items():
        groups.setdefault(origins.get(name, ASSUMED), []).append(text)
    return "; ".join(
        f"{', '.join(words)} ({'assumed' if place == ASSUMED else 'from ' + place})"
        for place, words in groups.items()
    )


def assumption(choice: ChosenPreprocessing) -> str | None:
    """Return what was assumed, as a sentence; None if nothing was."""
    texts = setting_texts(choice.preprocessing)
    words = [texts[name] for name in choice.assumed if name in texts]
    return (
        f"the file of the network does not state its pre-processing; assumed: {', '.join(words)}"
        if words
        else None
    )


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
    fraction = usual_fraction(size) if mode is ResizeMode.SHORTER else 1.0
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


def _contradiction(
    choice: ChosenPreprocessing, alone: ChosenPreprocessing, sized: StatedSettings | None
) -> str | None:
    """Return what differs between the choice and what the checkpoint states, as a sentence."""
    used, own = setting_texts(choice.preprocessing), setting_texts(alone.preprocessing)
    places = dict(alone.origins)
    if choice.preprocessing.resize_mode is not alone.preprocessing.resize_mode:
        places["resize"] = max(places["resize"], places["resize_mode"], key=ASSUMED.__ne__)
    if sized is not None and sized.settings.image_size is not None:
        places["image_size"] = sized.place
        own["image_size"] = f"{size_text(sized.settings.image_size)} pixels"
    # A mean that only follows the order of other channels is still the checkpoint's.
    differing = [
        name for name in used
        if used[name] != own.get(name) and ASSUMED not in (places[name], choice.origins[name])
        and (name not in ("mean", "std") or choice.origins[name] != places[name])
    ]  # fmt: skip
    texts = [
        f"{used[name]} (from {choice.origins[name]}) instead of "
        f"{own.get(name, 'it')} (from {places[name]})"
        for name in differing
    ]
    return f"the pre-processing is not the checkpoint's: {', '.join(texts)}" if texts else None


def _margin(side: int, fraction: float) -> int:
    # Rounded first, because 224 / 0.56 is 399.99999999999994 in floating point.
    return math.floor(round(side / fraction, 6))
