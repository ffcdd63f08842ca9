"""Candidates of the search: the pre-processings with which published networks are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from resdeploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
    usual_fraction,
)
from resdeploy.images.preprocessing_choice import resize_for

Normalisation = tuple[int, tuple[float, ...], tuple[float, ...]]
"""Value range, mean and standard deviation of R, G and B."""

_ZERO, _ONE, _HALF = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3
NORMALISATIONS: dict[str, Normalisation] = {
    "ImageNet": (1, IMAGENET_MEAN, IMAGENET_STD),
    "0.5/0.5": (1, _HALF, _HALF),  # TensorFlow's Inception; timm's IMAGENET_INCEPTION_MEAN
    "0..1": (1, _ZERO, _ONE),
    "0..255": (255, _ZERO, _ONE),
    "Caffe": (255, (123.68, 116.779, 103.939), _ONE),  # Keras, imagenet_utils, mode "caffe"
    "CIFAR-10": (1, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # Means of the images' standard deviations, as in github.com/kuangliu/pytorch-cifar.
    "CIFAR-10 (kuangliu)": (1, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
GRAY_NORMALISATIONS: dict[str, Normalisation] = {
    "ImageNet": (1, (0.449,), (0.226,)),  # means over R, G and B
    "0.5/0.5": (1, (0.5,), (0.5,)),
    "0..1": (1, (0.0,), (1.0,)),
    "0..255": (255, (0.0,), (1.0,)),
    "MNIST": (1, (0.1307,), (0.3081,)),  # PyTorch's example
}
FRACTIONS = (1.0, 0.95, 0.9, 0.875)  # timm's `crop_pct` of ResNets
LARGE_SIZES, SMALL_SIZES = (224, 192, 256, 288), (32, 28, 40, 64, 24, 36, 48)
SMALL_PICTURE = 96  # largest shorter side, in pixels, for which the small sizes are tried


def starting_points(size: int, *, gray: bool) -> list[Preprocessing]:
    """Return each normalisation and order of channels, with the standard geometry."""
    start = Preprocessing(image_size=size, resize=resize_for(size, usual_fraction(size)))
    return normalisations(start, gray=gray)


def neighbours(candidate: Preprocessing, sizes: Sequence[int]) -> Iterator[Preprocessing]:
    """Yield the candidates of another size, and those of another crop or interpolation."""
    for size in sizes:
        resize = resize_for(size, crop_fraction(candidate) or 1.0)
        yield replace(candidate, image_size=size, resize=resize)
    # All pairs, because a wrong crop can hide a right interpolation, and the reverse.
    for interpolation in (Interpolation.BILINEAR, Interpolation.BICUBIC):
        scaled = replace(candidate, interpolation=interpolation)
        for fraction in FRACTIONS:
            resize = resize_for(candidate.image_size, fraction)
            yield replace(scaled, resize=resize, resize_mode=ResizeMode.SHORTER)
        yield replace(scaled, resize=candidate.image_size, resize_mode=ResizeMode.SQUASH)


def describe(candidate: Preprocessing) -> str:
    """Return the settings of a candidate in a few words."""
    normalisation, channels, *geometry = filter(None, _setting_words(candidate).values())
    return ", ".join([f"{normalisation} {channels}", *geometry])


def describe_common(candidates: Sequence[Preprocessing]) -> tuple[str, str]:
    """Return the settings that all candidates have, and the values of the others, in words."""
    common, others = list[str](), list[str]()
    for name in _setting_words(candidates[0]):
        values = dict.fromkeys(_setting_words(candidate)[name] for candidate in candidates)
        if len(values) == 1:
            common += filter(None, values)
        else:
            *first, last = sorted((value or "usual" for value in values), key=_by_number)
            others.append(f"{name} ({', '.join(first)} or {last})")
    return ", ".join(common), " and ".join(others)


def _by_number(text: str) -> tuple[float, str]:
    number = re.search(r"(?<![\d.])\d+(\.\d+)?(?![\d.])", text)  # not a range such as 0..255
    return float(number[0]) if number else math.inf, text


def _setting_words(candidate: Preprocessing) -> dict[str, str]:
    """Return the text of each setting that the search decides."""
    table = GRAY_NORMALISATIONS if candidate.channels is Channels.GRAY else NORMALISATIONS
    back = -1 if candidate.channels is Channels.BGR else 1
    values = candidate.value_range, candidate.mean[::back], candidate.std[::back]
    name = next((name for name, known in table.items() if known == values), None)
    if name is None:
        name = f"mean {_numbers(candidate.mean)} std {_numbers(candidate.std)}"
    fraction = _stated_fraction(candidate)
    height, width = candidate.size
    even = candidate.crop_offset is CropOffset.EVEN
    return {
        "normalisation": name,
        "channels": candidate.channels.value,
        "size": f"{height} px" if height == width else f"{height}x{width} px",
        "crop": candidate.resize_mode.value + (f" {fraction:g}" if fraction else ""),
        "interpolation": candidate.interpolation.value
        + ("" if candidate.antialias else " without antialias"),
        "crop offset": "" if even else "rounded down",
    }


def export_options(candidate: Preprocessing) -> str:
    """Return the options of `export` for a candidate."""
    height, width = candidate.size
    options = {
        "mean": _numbers(candidate.mean),
        "std": _numbers(candidate.std),
        "image-size": f"{height}" if height == width else f"{height}x{width}",
        "resize": candidate.resize_mode.value,
        "interpolation": candidate.interpolation.value,
        "channels": candidate.channels.value,
        "value-range": f"{candidate.value_range}",
    }
    if candidate.crop_offset is not CropOffset.EVEN:
        options["crop-offset"] = candidate.crop_offset.value
    if fraction := _stated_fraction(candidate):
        options["crop-fraction"] = f"{fraction:.8g}"
    antialias = "--antialias" if candidate.antialias else "--no-antialias"
    return " ".join([*(f"--{name} {value}" for name, value in options.items()), antialias])


def crop_fraction(candidate: Preprocessing) -> float | None:
    """Return a short number from which the size before the crop follows; None if none does."""
    exact = candidate.size[0] / candidate.resized[0]
    numbers = (*FRACTIONS, *(round(exact, digits) for digits in range(1, 9)))
    return next(
        (f for f in numbers if f and resize_for(candidate.size, f) == candidate.resized), None
    )


def _stated_fraction(candidate: Preprocessing) -> float | None:
    """Return the fraction if it says anything: not of a squashed picture without a crop."""
    cropped = candidate.resize_mode is ResizeMode.SHORTER or candidate.resized != candidate.size
    return crop_fraction(candidate) if cropped else None


def normalisations(candidate: Preprocessing, *, gray: bool) -> list[Preprocessing]:
    """Return the geometry of a candidate with each normalisation and order of channels."""
    orders = (Channels.GRAY,) if gray else (Channels.RGB, Channels.BGR)
    return [
        replace(
            candidate,
            channels=channels,
            value_range=value_range,
            mean=mean[:: -1 if channels is Channels.BGR else 1],
            std=std[:: -1 if channels is Channels.BGR else 1],
        )
        for value_range, mean, std in (GRAY_NORMALISATIONS if gray else NORMALISATIONS).values()
        for channels in orders
    ]


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.8g}" for value in values)
