"""Sources of a checkpoint's pre-processing: its run, a file beside it, and its own entries."""

from __future__ import annotations

from resdeploy.images.preprocessing_choice import StatedSettings
from resdeploy.images.preprocessing_files import settings_beside
from resdeploy.images.preprocessing_settings import settings_of
from resdeploy.train.checkpoint.load import Checkpoint


def stated_sources(checkpoint: Checkpoint) -> list[StatedSettings]:
    """Return what a checkpoint states, the most important source first.

    Raises:
        DataError: A file beside the weights is damaged or cannot be followed.
    """
    sources = []
    if checkpoint.preprocessing is not None:
        stated = settings_of(checkpoint.preprocessing)
        sources.append(StatedSettings(settings=stated, place="the run"))
    elif found := settings_beside(checkpoint.path):
        sources.append(StatedSettings(settings=found[0], place=f"{found[1]} beside the weights"))
    if checkpoint.settings is not None:
        sources.append(
            StatedSettings(settings=checkpoint.settings, place=checkpoint.settings_source)
        )
    return sources
