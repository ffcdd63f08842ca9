"""Settings of the pre-processing in words, for tables and reports."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    Preprocessing,
    ResizeMode,
)


def preprocessing_facts(preprocessing: Preprocessing) -> tuple[tuple[str, str], ...]:
    """Return all settings as pairs of name and text."""
    gap = preprocessing.effective_gap
    return (
        ("resize and crop", resize_text(preprocessing)),
        (
            "decoding",
            "whole"
            if gap is None
            else f"JPEG files at 1/2, 1/4 or 1/8 of their size if {gap:g} times the size after the "
            "resize is left",
        ),
        ("normalisation, in the graph", normalisation_text(preprocessing)),
    )


def resize_text(preprocessing: Preprocessing) -> str:
    """Return the resize and the crop, such as `shorter side to 256 pixels (bilinear), then ...`."""
    mode, target, size = preprocessing.resize_mode, preprocessing.resized, preprocessing.size
    around, between = _rectangle(size), _rectangle(target)
    if mode is ResizeMode.SHORTER and target[0] == target[1]:
        text = f"shorter side to {target[0]} pixels"
    else:
        text = {
            ResizeMode.SHORTER: f"scaled until it covers {between} pixels",
            ResizeMode.SQUASH: f"squashed to {between} pixels",
            ResizeMode.PAD: f"scaled until it fits into {between} pixels",
            ResizeMode.NONE: "not scaled",
        }[mode]
    if mode is not ResizeMode.NONE:
        filter_ = preprocessing.interpolation.value
        text += f" ({filter_}{'' if preprocessing.antialias else ' without antialiasing'})"
    if mode is not ResizeMode.SQUASH or target != size:
        text += f", then the central {around} pixels"
        down = preprocessing.crop_offset is CropOffset.DOWN
        text += ", offset rounded down" if down else ""
    if mode in (ResizeMode.PAD, ResizeMode.NONE):
        text += f", with a border of RGB {preprocessing.pad_colour} where the picture is smaller"
    return text


def normalisation_text(preprocessing: Preprocessing) -> str:
    """Return the channels and their normalisation, such as `BGR, (pixel - mean) / std, ...`."""
    channels, mean, std = preprocessing.channels, preprocessing.mean, preprocessing.std
    order = {Channels.RGB: "", Channels.BGR: "BGR, ", Channels.GRAY: "grey, "}[channels]
    value = "pixel / 255" if preprocessing.value_range == 1 else "pixel"
    return f"{order}({value} - mean) / std, mean {_numbers(mean)}, std {_numbers(std)}"


def _rectangle(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
