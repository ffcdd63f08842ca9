"""The pre-processing of an export: from options, files, the checkpoint, or a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdeploy.bundle.manifest import ExportWarning
from resdeploy.errors import ExportError
from resdeploy.export.source.network import CheckpointNetwork, Network
from resdeploy.images.preprocessing_choice import (
    ChosenPreprocessing,
    StatedSettings,
    assumption,
    choose_preprocessing,
)
from resdeploy.images.preprocessing_files import read_preprocessing_file
from resdeploy.images.preprocessing_settings import PreprocessingSettings, settings_of
from resdeploy.progress import Progress
from resdeploy.result_files.provenance import shown_path

AUTO = Path("auto")
STATE_IT = (
    "state it with --preprocessing FILE or options such as --mean, --std, --resize and --image-size"
)
REMEDY = f"{STATE_IT}, or find it out with resdeploy preprocess CHECKPOINT --data LABELLED"
CONTRADICTION_REMEDY = (
    "leave the option or the file out if the checkpoint is right; resdeploy preprocess CHECKPOINT "
    "--data LABELLED compares them on images"
)


def choose_source_preprocessing(
    network: Network,
    options: PreprocessingSettings,
    file: Path | None,
    labels: Sequence[str],
    data: Path | None,
    *,
    seed: int,
    progress: Progress,
) -> ChosenPreprocessing:
    """Choose each setting from the first of: options, `file`, the network, the assumptions.

    A network states settings in the folder of its run, in a file beside it, or within it.

    Raises:
        DataError: A file is damaged or cannot be followed, or the settings are not possible.
        ExportError: With `auto`, there is no `data`, or the search is undecided.
    """
    sources = [StatedSettings(settings=options, place="an option", is_option=True)]
    if file == AUTO:
        sources.append(_measured(network, options, labels, data, seed, progress))
    elif data is not None:
        raise ExportError(
            "--data is only used by --preprocessing auto", "leave --data out, or add the other"
        )
    elif file is not None:
        sources.append(StatedSettings(settings=read_preprocessing_file(file), place=file.name))
    sources += network.stated_settings()
    return choose_preprocessing(
        sources, default_size=network.default_size, default_channels=network.default_channels
    )


def remedy_of(network: Network) -> str:
    """Return how to state a pre-processing that was assumed; graphs cannot be searched for it."""
    return REMEDY if isinstance(network, CheckpointNetwork) else STATE_IT


def preprocessing_warnings(network: Network, choice: ChosenPreprocessing) -> list[ExportWarning]:
    """Return warnings that say what was assumed, and what contradicts the network's file."""
    warnings = (
        (assumption(choice), remedy_of(network)),
        (choice.contradiction, CONTRADICTION_REMEDY),
    )
    return [ExportWarning(message=text, hint=hint) for text, hint in warnings if text]


def _measured(
    network: Network,
    options: PreprocessingSettings,
    labels: Sequence[str],
    data: Path | None,
    seed: int,
    progress: Progress,
) -> StatedSettings:
    from resdeploy.export.preprocessing_search.candidates import describe_common
    from resdeploy.export.preprocessing_search.search import find_preprocessing

    if data is None:
        raise ExportError(
            "--preprocessing auto needs labelled images", "name a folder of them with --data"
        )
    if not isinstance(network, CheckpointNetwork):
        raise ExportError(
            "--preprocessing auto needs weights of PyTorch, not an ONNX file",
            "state the pre-processing with options such as --mean and --std",
        )
    checkpoint = network.checkpoint
    sizes = (options.image_size,) if isinstance(options.image_size, int) else ()
    found = find_preprocessing(checkpoint, labels, data, sizes=sizes, seed=seed, progress=progress)
    if found.preprocessing is None:
        common, unsettled = describe_common([row.preprocessing for row in found.left])
        raise ExportError(
            f"the pre-processing is undecided: {unsettled}; {len(found.left)} candidates are left "
            f"on {data}, with {common or 'nothing'} in common; they predict the same class for "
            f"{found.same_predictions} of {found.images} images",
            f"look at them with resdeploy preprocess {checkpoint.path} --data {data}, and state "
            "one with --preprocessing FILE or options",
        )
    place = f"measured on {shown_path(data)}"  # the manifest holds it
    return StatedSettings(settings=settings_of(found.preprocessing), place=place)
