"""Facts that a checkpoint states about itself: labels, input size, normalisation and architecture.

Tools use many names for each fact. A note reports each value that is not used.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from resdeploy.images.preprocessing import ImageSize, Interpolation
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.json_documents import strict_json
from resdeploy.readable_text import readable
from resdeploy.train.checkpoint.contents import CheckpointPart
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.model.architecture import Architecture

LABEL_KEYS = (
    "class_names", "classes", "label_names", "labels", "vocab", "id2label", "idx_to_class",
    "idx2class", "idx2label", "class_to_idx", "class2idx", "label2id", "categories", "names",
    "target_names",
)  # fmt: skip
CLASS_COUNT_KEYS = ("num_classes", "n_classes", "nb_classes", "num_labels", "classes")
ARCHITECTURE_KEYS = ("arch", "architecture", "model_name", "backbone", "model", "encoder", "net")
# Mappings of settings; `meta` is MMPretrain's, `data_config` and `pretrained_cfg` are timm's.
_CONTAINERS = re.compile(
    r"(?:^|\.)(?:hyper_parameters|datamodule_hyper_parameters|hparams|args|opts?|config|cfg|meta"
    r"|dataset_meta|metadata|data|data_config|pretrained_cfg|transforms?|normaliz\w+|preprocess\w*)$"
)
_SETTING_KEYS = {
    "image_size": (
        "val_crop_size", "img_size", "image_size", "imgsz", "input_size", "crop_size", "im_size",
        "input_shape", "resolution",
    ),
    "resize": ("val_resize_size", "resize_size"),
    "crop_fraction": ("crop_pct", "crop_fraction"),
    "interpolation": ("interpolation",),
    "mean": (
        "mean", "img_mean", "image_mean", "imagenet_mean", "normalize_mean", "norm_mean",
        "pixel_mean", "dataset_mean",
    ),
    "std": (
        "std", "img_std", "image_std", "imagenet_std", "normalize_std", "norm_std", "pixel_std",
        "dataset_std",
    ),
}  # fmt: skip


def relevant_sections(sections: Iterable[CheckpointPart]) -> list[CheckpointPart]:
    """Return the mappings whose entries describe the network."""
    return [
        section
        for section in sections
        if not section.place
        or _CONTAINERS.search(section.place.lower())
        or "vocab" in section.values  # deep within fastai's learners
    ]


def read_labels_of(
    sections: Iterable[CheckpointPart], classes: int
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the labels that a checkpoint states, and notes on those that are not used.

    A network with one class is one with a sigmoid, which has two labels.
    """
    wanted = 2 if classes == 1 else classes
    labels: tuple[str, ...] | None = None
    origin, notes = "", []
    for section in sections:
        values = {key.lower(): value for key, value in section.values.items()}
        for key in filter(values.__contains__, LABEL_KEYS):
            place = f"{section.place}.{key}".lstrip(".")
            found = _label_list(values[key])
            if found is None:
                value = values[key]
                if isinstance(value, Mapping) or str(value).lstrip()[:1] in ("[", "{"):
                    notes.append(f"{place} does not name each class once, so it is not used")
            elif found == tuple(f"LABEL_{n}" for n in range(len(found))):
                continue  # Hugging Face's names of classes without names
            elif len(found) != wanted:
                notes.append(
                    f"{place} has {len(found)} labels for {wanted} classes; they are not used"
                )
            elif labels is None:
                labels, origin = found, place
            elif difference := first_difference(labels, found):
                notes.append(f"{place} differs from {origin}, which is used: {difference}")
    if labels and (repeated := repeated_labels(labels, origin)):
        notes.append(repeated)
    return labels, notes


def repeated_labels(labels: Sequence[str], place: object) -> str | None:
    """Return a sentence about labels of several classes; None if all names differ."""
    counts = Counter(label.casefold() for label in labels)
    found = [label for label in labels if counts[label.casefold()] > 1]
    return f"{len(found)} labels in {place} are equal, such as {found[0]!r}" if found else None


def first_difference(one: Sequence[str], other: Sequence[str]) -> str | None:
    """Return the first class with two names, as text; None if all are equal."""
    pairs = ((n, a, b) for n, (a, b) in enumerate(zip(one, other)) if a.casefold() != b.casefold())
    return next((f"class {n} is {a!r} in one and {b!r} in the other" for n, a, b in pairs), None)


def one_line_labels(labels: Iterable[object]) -> tuple[str, ...]:
    """Return labels that fit into one line each."""
    return tuple(readable(" ".join(str(label).split())) for label in labels)


def _label_list(value: Any) -> tuple[str, ...] | None:
    """Return labels in the order of the classes; None if `value` is something else."""
    while isinstance(value, Placeholder):  # such as fastai's CategoryMap
        value = value.items or value.attributes().get("items")
    if isinstance(value, str):
        try:
            value = strict_json(value.encode())
        except ValueError:
            value = value.split() if value.strip()[:1] not in ("[", "{") else None
    if isinstance(value, Mapping):
        pairs = [(str(key), entry) for key, entry in value.items()]
        if all(isinstance(entry, int) for _, entry in pairs):
            pairs = [(str(index), key) for key, index in pairs]
        if sorted(key for key, _ in pairs) != sorted(map(str, range(len(pairs)))):
            return None
        value = [label for _, label in sorted(pairs, key=lambda pair: int(pair[0]))]
    if not isinstance(value, Sequence) or not value:
        return None
    are_names = all(isinstance(v, (str, int)) and str(v).strip() for v in value)
    return one_line_labels(value) if are_names else None


def read_settings_of(
    sections: Iterable[CheckpointPart],
) -> tuple[PreprocessingSettings, str, list[str]]:
    """Return the pre-processing that a checkpoint states, its places, and notes on wrong values."""
    found: dict[str, Any] = {}
    places, notes = [], []
    for section in sections:
        values = {key.lower().replace("-", "_"): value for key, value in section.values.items()}
        for field, names in _SETTING_KEYS.items():
            for name in names:
                value = values.get(name)
                if value is None or field in found or (isinstance(value, str) and not value):
                    continue
                try:
                    found[field] = _READERS[field](value)
                    places.append(section.place)
                except (ValueError, TypeError, ArithmeticError, LookupError):
                    notes.append(
                        f"{section.place}.{name}".lstrip(".")
                        + f" is {value!r:.60}, which is not used"
                    )
    if max(found.get("mean", ()), default=0) > 1.5 or max(found.get("std", ()), default=0) > 1.5:
        found["value_range"] = 255
    return (
        PreprocessingSettings(**found),
        ", ".join(dict.fromkeys(place or "entries" for place in places)),
        notes,
    )


def _read_size(value: Any) -> ImageSize:
    if isinstance(value, Mapping):
        value = [value["height"], value["width"]] if "height" in value else value["shortest_edge"]
    if isinstance(value, (list, tuple)):
        sides = tuple(int(side) for side in value)[-2:]  # timm writes (channels, height, width)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(value)
        return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return int(value)


def _read_numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        value = value.flatten().tolist()[:4]
    numbers = tuple(float(number) for number in ([value] if isinstance(value, float) else value))
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(value)
    return numbers


def _read_scales(value: Any) -> tuple[float, ...]:
    if min(numbers := _read_numbers(value)) <= 0:
        raise ValueError(value)
    return numbers


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "image_size": _read_size,
    "resize": _read_size,
    "crop_fraction": float,
    "interpolation": Interpolation,
    "mean": _read_numbers,
    "std": _read_scales,
}


def find_normalisation(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `mean` and `std` of a normalisation within the network; empty if it has none."""
    found = {
        kind: tensor
        for name, tensor in tensors.items()
        for kind, pattern in (
            ("mean", r"(?:^|[._])(?:mean|mu)$"),
            ("std", r"(?:^|[._])(?:std|sigma)$"),
        )
        if re.search(pattern, name) and tensor.numel() in (1, 3)
    }
    return found if len(found) == 2 else {}


def contradictions_of(
    sections: Iterable[CheckpointPart], architecture: Architecture
) -> Iterator[str]:
    """Yield a note for each stated architecture or number of classes that is not the tensors'."""
    for section in sections:
        for key in filter(section.values.__contains__, CLASS_COUNT_KEYS):
            count, place = section.values[key], f"{section.place}.{key}".lstrip(".")
            # A sigmoid's only logit stands for two classes.
            counts = (1, 2) if architecture.classes == 1 else (architecture.classes,)
            if type(count) is int and count not in counts:
                yield f"{place} is {count}, but the tensors have {architecture.classes} outputs"
        for key in filter(section.values.__contains__, ARCHITECTURE_KEYS):
            name = section.values[key]
            stated = isinstance(name, str) and re.search(r"res(?:net|next)_?(\d+)", name.lower())
            if stated and int(stated[1]) != architecture.layers:
                place = f"{section.place}.{key}".lstrip(".")
                yield f"{place} is {name!r:.60}, but the tensors are those of a {architecture.name}"
