"""Files of other tools, and of our own, that state a pre-processing.

Sources: timm 1.0.31, data/config.py (`resolve_data_config`) and data/transforms_factory.py
(`transforms_imagenet_eval`); transformers 5.24.0, models/*/image_processing_pil_*.py (the values
of `_PROCESSORS`), image_processing_backends.py and image_processing_utils.py (`get_size_dict`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resdeploy.errors import DataError, DocumentError
from resdeploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    CropOffset,
    ImageSize,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings, settings_of
from resdeploy.json_documents import parse, read_json

COMPANIONS = ("model.json", "preprocessor_config.json", "config.json")
HINT = (
    "give the model.json of a run, the config.json of timm, or the preprocessor_config.json of "
    "Hugging Face; or give the settings as options, such as --mean and --std"
)
_TIMM_MODES = {"center": ResizeMode.SHORTER, "squash": ResizeMode.SQUASH, "border": ResizeMode.PAD}
# Numbers of PIL.Image.Resampling.
_RESAMPLE = {
    0: Interpolation.NEAREST,
    1: Interpolation.LANCZOS,
    2: Interpolation.BILINEAR,
    3: Interpolation.BICUBIC,
}
# From this side on, ConvNextImageProcessor squashes the picture and does not crop it.
_CONVNEXT_SQUASH = 384
_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
# Other steps that are true change the pixels in ways that cannot be followed.
_OTHER_STEPS = ("rescale_offset", "use_square_size")
_HARMLESS = ("do_convert_rgb", "do_reduce_labels")
_EVERY_PROCESSOR = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
}  # fmt: skip
_CROP = {"crop_size": 224, "do_center_crop": True}
_HALF = {"image_mean": 0.5, "image_std": 0.5}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SHORTER_224, _SHORTER_256, _SHORTER_384 = (
    {"size": {"shortest_edge": side}, "default_to_square": False} for side in (224, 256, 384)
)
_SQUARE_224, _SQUARE_256 = (
    {"size": {"height": side, "width": side}, "default_to_square": True} for side in (224, 256)
)
# Values of the processors of Hugging Face for what a file does not state.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ConvNext": _HALF | _SHORTER_384 | {"resample": 3, "crop_pct": 224 / 256},
    "ViT": _HALF | _SQUARE_224 | {"resample": 2},
    "DeiT": _HALF | _SQUARE_256 | _CROP | {"resample": 3},
    "CLIP": _CLIP | _SHORTER_224 | _CROP | {"resample": 3},
    "Bit": _CLIP | _SHORTER_224 | _CROP | {"resample": 3},
    "MobileNetV1": _HALF | _SHORTER_256 | _CROP | {"resample": 2},
    "MobileNetV2": _HALF | _SHORTER_256 | _CROP | {"resample": 2},
}


def read_preprocessing_file(path: Path) -> PreprocessingSettings:
    """Read a `model.json`, a `manifest.json`, or a configuration of timm or Hugging Face.

    Raises:
        DataError: The file cannot be read, or states no pre-processing, or one that cannot be
            followed exactly.
    """
    try:
        settings = _read_settings(read_json(path))
    except DocumentError as error:
        raise DataError(str(error), HINT) from error
    except ValueError as error:
        raise DataError(f"{path} cannot be followed: {error}", HINT) from error
    if settings is None:
        raise DataError(f"{path} states no pre-processing", HINT)
    return settings


def settings_beside(weights: Path) -> tuple[PreprocessingSettings, str] | None:
    """Return the pre-processing that a file beside the weights, or in their folder, states.

    The second value is the name of the file. None means that there is no such file.

    Raises:
        DataError: There is such a file, but it is damaged or cannot be followed exactly.
    """
    folder = weights if weights.is_dir() else weights.parent
    for name in COMPANIONS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings = _read_settings(read_json(path))
        except (DocumentError, ValueError) as error:
            reason = f"{path}, beside the weights, cannot be followed: {error}"
            raise DataError(reason, f"move {name} away, or {HINT}") from error
        if settings is not None:
            return settings, name
    return None


def _read_settings(document: Any) -> PreprocessingSettings | None:
    """Return what a document states; None if it states no pre-processing.

    Raises:
        ValueError: It states something that cannot be followed.
    """
    if not isinstance(document, Mapping):
        return None
    if isinstance(document.get("preprocessing"), Mapping):
        return settings_of(parse(Preprocessing, document["preprocessing"], "preprocessing"))
    for key in ("pretrained_cfg", "default_cfg"):
        if isinstance(document.get(key), Mapping):
            return _read_timm(document[key])
    names = {"image_processor_type", "feature_extractor_type", "image_mean", "image_std", *_FLAGS}
    if names & document.keys():
        return _read_hugging_face(document)
    is_timm = {"input_size", "crop_pct", "crop_mode"} & document.keys() and "mean" in document
    return _read_timm(document) if is_timm else None


def _read_timm(config: Mapping[str, Any]) -> PreprocessingSettings:
    size = _numbers(config.get("input_size") or (3, 224, 224), "input_size", (3,))
    channels, height, width = size
    if channels not in (1, 3):
        raise ValueError(f"input_size has {channels:g} channels; 1 and 3 are supported")
    mode = config.get("crop_mode") or "center"
    if not isinstance(mode, str) or mode not in _TIMM_MODES:
        raise ValueError(f"crop_mode is {mode!r:.40}; only {', '.join(_TIMM_MODES)} are supported")
    mean = _numbers(config.get("mean") or IMAGENET_MEAN, "mean", (1, 3))
    border = None
    if mode == "border":  # timm fills it with the mean of the normalisation
        red, green, blue = (round(255 * value) for value in (mean * 3)[:3])
        border = (red, green, blue)
    return PreprocessingSettings(
        image_size=_size(height, width),
        crop_fraction=_number(config.get("crop_pct") or 0.875, "crop_pct"),
        resize_mode=_TIMM_MODES[mode],
        interpolation=_interpolation(config.get("interpolation") or "bicubic"),
        antialias=True,
        crop_offset=CropOffset.EVEN,
        channels=Channels.GRAY if channels == 1 else Channels.RGB,
        pad_colour=border,
        value_range=1,
        mean=mean,
        std=_numbers(config.get("std") or IMAGENET_STD, "std", (1, 3)),
    )


def _read_hugging_face(document: Mapping[str, Any]) -> PreprocessingSettings:
    name, config = _with_defaults(document)
    for key in (key for key in config if key.startswith("do_") or key in _OTHER_STEPS):
        if config[key] not in (True, False, None):
            raise ValueError(f"{key} is {config[key]!r:.40}, not true or false")
        if config[key] and key not in _FLAGS + _HARMLESS:
            raise ValueError(f"{key} is true, which is not supported")
    resizes, rescales, normalises, crops = (bool(config.get(flag)) for flag in _FLAGS)
    if rescales:
        scale = _number(config["rescale_factor"], "rescale_factor")
        if not math.isclose(scale, 1 / 255, rel_tol=1e-6):  # some files have few digits
            raise ValueError(f"rescale_factor is {scale:g}; only 1/255 is supported")
    interpolation = None
    if resizes and "resample" in config:
        resample = config["resample"]
        if not isinstance(resample, int) or resample not in _RESAMPLE:
            raise ValueError(f"resample is {resample!r:.40}; 0 to 3 are supported")
        interpolation = _RESAMPLE[resample]
    if not normalises:
        config |= {"image_mean": 0, "image_std": 1}
    return PreprocessingSettings(
        **_hugging_face_sizes(name, config, resizes=resizes, crops=crops),
        interpolation=interpolation,
        antialias=True,
        crop_offset=CropOffset.DOWN,
        channels=Channels.RGB,
        value_range=1 if rescales else 255,
        mean=_numbers(config["image_mean"], "image_mean", (1, 3))
        if "image_mean" in config
        else None,
        std=_numbers(config["image_std"], "image_std", (1, 3)) if "image_std" in config else None,
    )


def _with_defaults(document: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the processor's name in `_PROCESSORS`, and the settings with its own values."""
    kind = document.get("image_processor_type") or document.get("feature_extractor_type")
    name = None
    if kind is not None:
        words = re.fullmatch(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)", str(kind))
        name = words[1] if words else None
        if name not in _PROCESSORS:
            names = ", ".join(_PROCESSORS)
            raise ValueError(f"the image processor is {kind!r:.60}; supported are those of {names}")
    defaults = _EVERY_PROCESSOR | (_PROCESSORS[name] if name else {})
    if name is None and "do_center_crop" not in document:
        defaults["do_center_crop"] = document.get("crop_size") is not None
    return name, {**defaults, **document}


def _hugging_face_sizes(
    name: str | None, config: Mapping[str, Any], *, resizes: bool, crops: bool
) -> dict[str, Any]:
    """Return image size, resize and its mode; nothing if an unnamed processor states no size."""
    if name is None and not config.keys() & {"size", "crop_size"}:
        return {}
    crop = _edges(config.get("crop_size"), "crop_size", square=True) if crops else None
    if name == "ConvNext" and (crops or not resizes):
        raise ValueError("a ConvNext processor with a crop of its own, or no resize, is unknown")
    if name is None and "crop_pct" in config:
        raise ValueError("crop_pct has a meaning only with an image_processor_type")
    if not resizes:
        if crop is None:
            raise ValueError("pictures are neither resized nor cropped, so the size is unknown")
        return {"image_size": crop, "resize_mode": ResizeMode.NONE}
    target = _edges(config.get("size"), "size", square=config.get("default_to_square"))
    if name == "ConvNext" and not isinstance(target, float):
        raise ValueError("a ConvNext processor needs size.shortest_edge")
    if not isinstance(target, float):
        return {
            "image_size": crop or target, "resize": target, "resize_mode": ResizeMode.SQUASH,
        }  # fmt: skip
    if name == "ConvNext":
        side = _size(target, target)
        if target >= _CONVNEXT_SQUASH:
            return {"image_size": side, "resize": side, "resize_mode": ResizeMode.SQUASH}
        fraction = _number(config["crop_pct"], "crop_pct")
        return {
            "image_size": side, "crop_fraction": fraction, "resize_mode": ResizeMode.SHORTER,
        }  # fmt: skip
    if crop is None:
        raise ValueError("the picture is resized by its shorter side but not cropped to a size")
    return {
        "image_size": crop, "resize": _size(target, target), "resize_mode": ResizeMode.SHORTER,
    }  # fmt: skip


def _edges(value: Any, name: str, *, square: bool | None) -> ImageSize | float:
    """Return a size in pixels; a shorter side as a float.

    A single number is a shorter side if `square` is False, and unclear if it is None.
    """
    if isinstance(value, Mapping):
        edges = {key: edge for key, edge in value.items() if edge is not None}
        if edges.keys() == {"height", "width"}:
            return _size(*(_number(edges[key], f"{name}.{key}") for key in ("height", "width")))
        if edges.keys() == {"shortest_edge"} and name == "size":
            return _number(edges["shortest_edge"], "size.shortest_edge")
        raise ValueError(
            f"{name} has {', '.join(sorted(edges)) or 'no entries'}, not height and width"
        )
    numbers = _numbers(value, name, (1, 2))
    if len(numbers) == 2:
        return _size(*numbers)
    if square is None:
        raise ValueError(
            f"{name} is {numbers[0]:g}, but no image_processor_type says of which side"
        )
    return _size(*numbers * 2) if square else numbers[0]


def _interpolation(value: Any) -> Interpolation:
    try:
        return Interpolation(value)
    except ValueError as error:
        names = ", ".join(member.value for member in Interpolation)
        raise ValueError(f"interpolation is {value!r:.40}; only {names} are supported") from error


def _number(value: Any, name: str) -> float:
    (number,) = _numbers(value, name, (1,))
    return number


def _numbers(value: Any, name: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Return one number or a list of numbers as a tuple, of one of the lengths in `counts`."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if len(numbers) not in counts or any(
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not math.isfinite(number)
        for number in numbers
    ):
        raise ValueError(f"{name} is {value!r:.60}, not {' or '.join(map(str, counts))} numbers")
    return tuple(float(number) for number in numbers)


def _size(height: float, width: float) -> ImageSize:
    if height != int(height) or width != int(width):
        raise ValueError(f"the size {height:g} x {width:g} is not in whole pixels")
    return int(height) if height == width else (int(height), int(width))
