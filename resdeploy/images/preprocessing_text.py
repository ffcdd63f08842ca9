"""The settings of a pre-processing in words, for output and reports."""

from __future__ import annotations

from resdeploy.images.preprocessing import (
    CropOffset,
    Preprocessing,
    ResizeMode,
    numbers_text,
    size_text,
)


def setting_texts(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the text of each setting in `preprocessing_choice.REPORTED` that has an effect."""
    rows, columns = preprocessing.resized
    resized = size_text(rows if rows == columns else (rows, columns))
    mode = preprocessing.resize_mode
    resize = {
        ResizeMode.SHORTER: f"shorter side {rows}" if rows == columns else f"covers {resized}",
        ResizeMode.SQUASH: f"squashed to {resized}",
        ResizeMode.PAD: f"padded to {resized}",
        ResizeMode.NONE: "not resized",
    }[mode]
    texts = {
        "image_size": f"{size_text(preprocessing.image_size)} pixels",
        "resize": resize,
        "interpolation": preprocessing.interpolation.value
        + ("" if preprocessing.antialias else " without antialiasing"),
        "channels": preprocessing.channels.value.upper(),
        "value_range": f"values 0 to {preprocessing.value_range}",
        "mean": f"mean {numbers_text(preprocessing.mean)}",
        "std": f"std {numbers_text(preprocessing.std)}",
    }
    if mode is ResizeMode.NONE:
        del texts["interpolation"]
    return texts


def other_setting_facts(preprocessing: Preprocessing) -> tuple[tuple[str, str], ...]:
    """Return the other settings that have an effect as pairs of name and text."""
    gap = preprocessing.effective_gap
    facts = {
        "decoding": "whole"
        if gap is None
        else "large JPEG files at 1/2, 1/4 or 1/8 of their size, but at no less than "
        f"{gap:g} times the size after the resize"
    }
    if preprocessing.crop_offset is CropOffset.DOWN:
        facts["offset of the crop"] = "rounded down"
    if preprocessing.resize_mode in (ResizeMode.PAD, ResizeMode.NONE):
        facts["border of small pictures"] = f"RGB {numbers_text(preprocessing.pad_colour)}"
    return tuple(facts.items())
