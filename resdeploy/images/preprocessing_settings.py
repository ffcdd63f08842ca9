"""Settings of the pre-processing that one source states, such as an option or a file.

A checkpoint rarely states all settings. Each source is read into a `PreprocessingSettings`, and the
sources are then combined in the order of their rank.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    ImageSize,
    Interpolation,
    Preprocessing,
    ResizeMode,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingSettings:
    """Settings that one source states; None for each setting that it does not state.

    The fields are those of `Preprocessing`, and `crop_fraction`.
    """

    image_size: ImageSize | None = None
    resize: ImageSize | None = None
    crop_fraction: float | None = None
    """Share of the resized picture's side that is cut out, instead of `resize`: `resize` is the
    image size divided by it, rounded down."""
    resize_mode: ResizeMode | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    pad_colour: tuple[int, int, int] | None = None
    crop_offset: CropOffset | None = None
    channels: Channels | None = None
    value_range: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reducing_gap: float | None = None


NOTHING_STATED = PreprocessingSettings()
# Options that are not named after their setting.
_OPTIONS = {
    "resize_mode": "--resize", "resize": "--crop-fraction", "reducing_gap": "--reduced-decoding",
}  # fmt: skip


def option_for(setting: str) -> str:
    """Return the option of the command line that states a setting, such as `--image-size`."""
    return _OPTIONS.get(setting, f"--{setting.replace('_', '-')}")


def settings_of(preprocessing: Preprocessing) -> PreprocessingSettings:
    """Return complete settings as those that one source states."""
    values: dict[str, Any] = {
        field.name: getattr(preprocessing, field.name) for field in fields(preprocessing)
    }
    values["resize"] = preprocessing.resize or preprocessing.image_size
    return PreprocessingSettings(**values)
