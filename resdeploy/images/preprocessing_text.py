"""The settings of a pre-processing and their origins in words, for output and reports."""

from __future__ import annotations

from collections.abc import Mapping

from resdeploy.images.preprocessing import (
    CropOffset,
    Preprocessing,
    ResizeMode,
    numbers_text,
    size_text,
)
from resdeploy.images.preprocessing_choice import ASSUMED, ChosenPreprocessing


def setting_texts(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the text of each setting in `REPORTED` that has an effect."""
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


def describe_choice(preprocessing: Preprocessing, origins: Mapping[str, str]) -> str:
    """Return the settings as a line, those of one origin together."""
    groups: dict[str, list[str]] = {}
    for name, text in setting_texts(preprocessing).items():
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
        f"the checkpoint does not state its pre-processing; assumed: {', '.join(words)}"
        if words
        else None
    )


def preprocessing_facts(
    preprocessing: Preprocessing, origins: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return all settings that have an effect as pairs of name and text.

    Bundles of older versions have no `origins`.
    """
    gap = preprocessing.effective_gap
    facts = {
        "pre-processing": describe_choice(preprocessing, origins)
        if origins
        else f"{', '.join(setting_texts(preprocessing).values())} (of unknown origin)",
        "decoding": "whole"
        if gap is None
        else f"JPEG files at 1/2, 1/4 or 1/8 of their size if {gap:g} times the size after the "
        "resize is left",
    }
    if preprocessing.crop_offset is CropOffset.DOWN:
        facts["offset of the crop"] = "rounded down"
    if preprocessing.resize_mode in (ResizeMode.PAD, ResizeMode.NONE):
        facts["border of small pictures"] = f"RGB {numbers_text(preprocessing.pad_colour)}"
    return tuple(facts.items())
