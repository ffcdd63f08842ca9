"""The settings of `resdeploy train` that depend on the pictures and on the files of this machine.

They apply without `--recipe`, to settings that no option states. A recipe always has the same
settings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any

from resdeploy.errors import ImageError
from resdeploy.images.class_folders import names_digest, split_folder
from resdeploy.images.decode import read_picture_file
from resdeploy.images.formats import HEAD_BYTES, format_of
from resdeploy.images.preprocessing import pixel_count, size_text
from resdeploy.images.preprocessing_settings import NOTHING_STATED, PreprocessingSettings
from resdeploy.images.structure import read_structure
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.checkpoint.run import RunDocument, recorded_run
from resdeploy.train.checkpoint.sources import stated_sources
from resdeploy.train.config import DIGITS, TrainingConfig
from resdeploy.train.data.dataset import DataSplits, read_splits
from resdeploy.train.data.shards import ImageFile, image_content
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.initialization import prepare

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"  # value of `init` for a new network, whatever weights this machine has
LARGEST_SIDE = 224  # pixels; He et al. 2015, arXiv:1512.03385, section 3.4
STRIDE = 32  # pixels of the input per pixel of the last maps, and the smallest input
MEASURED_PICTURES = 32
FAR_ENLARGED = 9  # times the pixels: twice the side is usual with weights of large pictures
SMALL_SIDE = 64  # pixels; the last maps of the usual stem have 2x2 pixels then
SMALLEST_BATCH = 16  # batch norm's statistics of fewer images are too noisy; Wu and He 2018


def choose_run(
    recipe: str | None,
    options: Mapping[str, Any],
    stated: PreprocessingSettings = NOTHING_STATED,
    file: Path | None = None,
) -> tuple[TrainingConfig, Checkpoint | None, DataSplits]:
    """Return the settings of a run, its initial weights and its images.

    Those in `options` that are not None are kept; for `stated` and `file` see `prepare`.

    Raises:
        SettingError: The recipe does not exist, or a setting is out of range.
        DataError: The images or the pre-processing cannot be used.
        CheckpointError: The weights cannot be used.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    adapts, origin = recipe is None and not chosen.get("qat"), ""
    if chosen.get("init") == NO_WEIGHTS:
        del chosen["init"]
    elif adapts and chosen.get("data") and not chosen.keys() & {"init", "stem", "shortcut"}:
        found, origin = find_weights(chosen.get("arch", "resnet34"))
        if found is not None and chosen["data"] != DIGITS:
            chosen.pop("arch", None)
            chosen["init"] = str(found)
    run = recorded_run(Path(chosen["init"])) if chosen.get("init") else None
    if run is not None and run.held_out is not None:
        chosen.setdefault("seed", run.held_out.seed)  # the same images validate again
    config = TrainingConfig.from_recipe(recipe, **chosen)
    is_digits = config.data == DIGITS
    splits = read_splits(digits_folder() if is_digits else Path(config.data), config.seed)
    if config.init is not None and not origin:
        origin = f"starting from the weights {config.init}, with the recipe {config.recipe}"
    if origin and not is_digits:
        logger.info("%s", origin)
    if run is not None and not is_digits:
        _warn_about_learned(run, config, splits)
    side = typical_side(splits)
    size = max(STRIDE, min(LARGEST_SIDE, side // STRIDE * STRIDE))
    if adapts:
        fitting = {"image_size": size} | fitting_schedule(len(splits.train.files), config)
        if chosen.keys() & {"batch_size", "lr"}:  # the learning rate depends on it
            del fitting["batch_size"], fitting["lr"]
        config = TrainingConfig.from_recipe(**{**fitting, **chosen})
    config, initial = prepare(config, replace(stated, image_size=chosen.get("image_size")), file)
    if not is_digits:
        _report_sizes(config, initial, side, size)
    return config, initial, splits


def _warn_about_learned(run: RunDocument, config: TrainingConfig, splits: DataSplits) -> None:
    """Log a warning if images validate which the initial `run` has learned."""
    data = Path(config.data)
    now, before = (split_folder(folder, "train").resolve() for folder in (data, Path(run.data)))
    known = run.held_out.sha256 if run.held_out else None
    if splits.held_out and now == before and names_digest(splits.val, data) != known:
        logger.warning(
            "%s may have learned some of the images that now validate, so their accuracy may be "
            "too high: omit --seed, and leave the files of %s as they were", config.init, data,
        )  # fmt: skip


def _report_sizes(
    config: TrainingConfig, initial: Checkpoint | None, side: int, fitting: int
) -> None:
    """Log the sizes of the input, the pictures and the weights, and what unusual ones cost."""
    sources = stated_sources(initial) if initial else []
    sizes = [s.settings.image_size for s in sources if s.settings.image_size is not None]
    trained = sizes[0] if sizes else config.image_size
    logger.info(
        "the network's input has %s pixels; the median shorter side of the pictures is %d%s",
        size_text(config.image_size), side,
        "" if trained == config.image_size else f"; the weights state {size_text(trained)} pixels",
    )  # fmt: skip
    cost = pixel_count(config.image_size) / fitting**2
    if cost >= FAR_ENLARGED:
        begin = fitting if initial is None else 2 * fitting
        logger.warning(
            "the pictures are enlarged to %s pixels, which adds no detail, and an epoch computes "
            "%.0f times as much as with --image-size %d; begin with --image-size %d",
            size_text(config.image_size), cost, fitting, begin,
        )  # fmt: skip
    for note in _stem_note(config, side):
        logger.info(note)


def notes_on(config: TrainingConfig, splits: DataSplits) -> Iterator[str]:
    """Yield what the report of a run says about its start: sentences without a full stop."""
    if config.init is None and config.data != DIGITS:
        yield "the training began with a new network; --init FILE starts from trained weights"
        yield from _stem_note(config, typical_side(splits))


def typical_side(splits: DataSplits) -> int:
    """Return the median shorter side of the training pictures, in pixels."""
    return median_low(shorter_sides(splits.train.files) or [LARGEST_SIDE])


def _stem_note(config: TrainingConfig, side: int) -> Iterator[str]:
    # He et al. 2015, section 4.2, have a 3x3 convolution and no pooling for CIFAR-10. The factor
    # is that of the multiplications of a ResNet-18 or -34: 15.0 and 15.5.
    if config.init is None and config.stem is None and STRIDE <= side <= SMALL_SIDE:
        yield (
            "for such small pictures, --stem cifar is usually more accurate, but up to 15 "
            "times slower: it does not begin by reducing them to a quarter of the side"
        )


def fitting_schedule(images: int, config: TrainingConfig) -> dict[str, Any]:
    """Return batch size, learning rate and epochs for so many training images.

    Few images get smaller batches with the same step size, so that an epoch has 50 steps if a batch
    of 16 allows it; He et al. 2015, arXiv:1512.03385, section 4.2, take larger steps still for
    their batch of 128. New networks see each image as often as the recipe says, or up to 60 times
    until they have seen 40,000 images: minutes on a CPU at 32 pixels.
    """
    least = SMALLEST_BATCH * int(os.environ.get("WORLD_SIZE", 1))
    batch = min(config.batch_size, max(least, 1 << max(1, images // 50).bit_length() - 1))
    fitting = {"batch_size": batch, "lr": config.lr * config.batch_size / batch}
    if config.init is None:
        fitting["epochs"] = max(config.epochs, min(60, -(-40_000 // images)))
    return fitting


def shorter_sides(files: Sequence[ImageFile]) -> list[int]:
    """Return the shorter sides of some of the pictures, in pixels, without decoding them."""
    sides = []
    for file in files[:: -(-len(files) // MEASURED_PICTURES)]:
        with suppress(ImageError):  # the training reports it
            content = image_content(file)
            data = read_picture_file(content) if isinstance(content, Path) else content
            structure = read_structure(data, format_of(data[:HEAD_BYTES]))
            sides.append(min(structure.width, structure.height))
    return list(filter(None, sides))  # 0: it is damaged


def find_weights(arch: str) -> tuple[Path | None, str]:
    """Return weights for the architecture `arch` that this machine has, if any, and a sentence.

    The places are the working folder and the caches of torchvision and of timm. Sources: the
    documentation of `torch.hub.get_dir` and of Hugging Face's variable `HF_HUB_CACHE`. Nothing is
    downloaded.
    """
    name = arch.replace("-", "_")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()
    hugging_face = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or hugging_face / "hub").expanduser()
    places = (
        (Path(), f"{name}-*.pth"),
        (torch_home / "hub" / "checkpoints", f"{name}-*.pth"),
        (hub, f"models--timm--{name}.*/snapshots/*/model.safetensors"),
    )
    for folder, pattern in places:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                return path, f"starting from the weights {path}; --init none trains a new network"
    looked = ", ".join(str(folder.absolute() / pattern) for folder, pattern in places)
    logger.debug("no file matches %s", looked)
    return None, (
        f"training a new network: there is no {name}-*.pth in this folder and no {arch} in the "
        "caches of torchvision and timm (-v lists them). In an environment with torchvision, "
        f"python -c 'import torchvision; torchvision.models.{name}(weights=\"DEFAULT\")' "
        "fills its cache; --init FILE starts from other weights"
    )
