"""Files of other tools, and of our own, that state a pre-processing.

Sources: timm, `timm/data/config.py` (resolve_data_config), `timm/data/transforms_factory.py`
(transforms_imagenet_eval); transformers, `image_processing_convnext.py`, `image_processing_vit.py`,
`image_processing_clip.py` and `image_transforms.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resdeploy.errors import DataError, DocumentError
from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings, settings_of
from resdeploy.json_documents import parse, read_json

COMPANIONS = ("preprocessor_config.json", "config.json")
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
# Above this side, ConvNextImageProcessor squashes the picture and does not crop it.
_CONVNEXT_SQUASH = 384


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
    if any(key.startswith("do_") or key == "image_mean" for key in document):
        return _read_hugging_face(document)
    for key in ("pretrained_cfg", "default_cfg"):
        if isinstance(document.get(key), Mapping):
            return _read_timm(document[key])
    is_timm = {"input_size", "crop_pct", "crop_mode"} & document.keys() and "mean" in document
    return _read_timm(document) if is_timm else None


def _read_timm(config: Mapping[str, Any]) -> PreprocessingSettings:
    channels, height, width = _numbers(config.get("input_size", (3, 224, 224)), "input_size", (3,))
    if channels not in (1, 3):
        raise ValueError(f"input_size has {channels:g} channels; 1 and 3 are supported")
    mode = config.get("crop_mode") or "center"
    if not isinstance(mode, str) or mode not in _TIMM_MODES:
        raise ValueError(f"crop_mode is {mode!r}; only {', '.join(_TIMM_MODES)} are supported")
    mean = _numbers(config["mean"], "mean", (1, 3)) if config.get("mean") else None
    border = None
    if mode == "border" and mean is not None:  # timm fills it with the mean of the normalisation
        red, green, blue = (min(255, round(255 * value)) for value in (mean * 3)[:3])
        border = (red, green, blue)
    return PreprocessingSettings(
        image_size=_size(height, width),
        crop_fraction=_number(config.get("crop_pct") or 0.875, "crop_pct"),
        resize_mode=_TIMM_MODES[mode],
        interpolation=_interpolation(config.get("interpolation") or "bicubic"),
        channels=Channels.GRAY if channels == 1 else Channels.RGB,
        pad_colour=border,
        value_range=1,
        mean=mean,
        std=_numbers(config["std"], "std", (1, 3)) if config.get("std") else None,
    )


def _read_hugging_face(config: Mapping[str, Any]) -> PreprocessingSettings:
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    size, crop = config.get("size"), config.get("crop_size")
    scale = _number(config.get("rescale_factor") or 1 / 255, "rescale_factor")
    if config.get("do_rescale", True) and not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"rescale_factor is {scale:g}; only 1/255 is supported")
    if config.get("do_pad"):
        raise ValueError("do_pad is true; it is not supported")
    resizes, crops = config.get("do_resize", True), config.get("do_center_crop", crop is not None)
    shorter: float | None = None
    if isinstance(size, Mapping):
        unknown = size.keys() - {"shortest_edge", "height", "width"}
        if unknown:
            raise ValueError(f"size has {sorted(unknown)[0]}, which is not supported")
        if "shortest_edge" in size:
            shorter = _number(size["shortest_edge"], "size.shortest_edge")
        target = _size(*(_number(size.get(key, shorter), "size") for key in ("height", "width")))
    elif size is not None:
        target = _size(*(_numbers(size, "size", (1, 2)) * 2)[:2])
        # An integer is a shorter side for processors that keep the proportions.
        keeps = kind.startswith(("ConvNext", "CLIP", "Bit", "ChineseCLIP")) or crops
        shorter = float(target) if keeps and isinstance(target, int) else None
    else:
        target = 224
    stated: dict[str, Any] = {"image_size": target, "resize": target}
    if kind.startswith("ConvNext") and shorter is not None and resizes:
        fraction = _number(config.get("crop_pct") or 224 / 256, "crop_pct")
        stated["resize_mode"] = ResizeMode.SHORTER
        if shorter < _CONVNEXT_SQUASH:
            stated["resize"] = int(shorter / fraction)
        else:
            stated["resize_mode"] = ResizeMode.SQUASH
    elif not resizes:
        stated["resize_mode"] = ResizeMode.NONE
    elif shorter is None:
        stated["resize_mode"] = ResizeMode.SQUASH
    elif crops:
        stated["resize_mode"] = ResizeMode.SHORTER
    else:
        raise ValueError("the picture is resized by its shorter side but not cropped to a size")
    if crops and crop is not None and not kind.startswith("ConvNext"):
        sides = [crop[key] for key in ("height", "width")] if isinstance(crop, Mapping) else crop
        stated["image_size"] = _size(*(_numbers(sides, "crop_size", (1, 2)) * 2)[:2])
        if not resizes:
            stated["resize"] = stated["image_size"]
    resample = config.get("resample", 2)
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise ValueError(f"resample is {resample!r}; 0 to 3 are supported")
    rescales, normalises = config.get("do_rescale", True), config.get("do_normalize", True)
    mean, std = config.get("image_mean"), config.get("image_std")
    if not normalises:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return PreprocessingSettings(
        **stated,
        interpolation=_RESAMPLE[resample],
        crop_offset=CropOffset.DOWN,
        channels=Channels.BGR if config.get("do_flip_channel_order") else Channels.RGB,
        value_range=1 if rescales else 255,
        mean=_numbers(mean, "image_mean", (1, 3)) if mean is not None else None,
        std=_numbers(std, "image_std", (1, 3)) if std is not None else None,
    )


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
        isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers
    ):
        raise ValueError(f"{name} is {value!r:.60}, not {' or '.join(map(str, counts))} numbers")
    return tuple(float(number) for number in numbers)


def _size(height: float, width: float) -> int | tuple[int, int]:
    if height != int(height) or width != int(width):
        raise ValueError(f"the size {height:g} x {width:g} is not in whole pixels")
    return int(height) if height == width else (int(height), int(width))
