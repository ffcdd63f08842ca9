"""Sources of a checkpoint's pre-processing: its run, a file beside it, and its own entries."""

from __future__ import annotations

from resdeploy.images.preprocessing import CropOffset
from resdeploy.images.preprocessing_choice import StatedSettings
from resdeploy.images.preprocessing_files import settings_beside
from resdeploy.images.preprocessing_settings import settings_of
from resdeploy.train.checkpoint.load import Checkpoint


def stated_sources(checkpoint: Checkpoint) -> list[StatedSettings]:
    """Return what a checkpoint states, the most important source first.

    Raises:
        DataError: A file beside the weights is damaged or cannot be followed.
    """
    found = []
    if checkpoint.preprocessing is not None:
        found.append((settings_of(checkpoint.preprocessing), "the run"))
    elif beside := settings_beside(checkpoint.path):
        found.append((beside[0], f"{beside[1]} beside the weights"))
    if checkpoint.settings is not None:
        found.append((checkpoint.settings, checkpoint.settings_source))
    return [StatedSettings(settings=s, place=place, is_checkpoint=True) for s, place in found]


def crop_offset_of(checkpoint: Checkpoint) -> CropOffset:
    """Return the rounding in the library that named the tensors; no option states it."""
    return CropOffset.DOWN if checkpoint.scheme == "Hugging Face" else CropOffset.EVEN
