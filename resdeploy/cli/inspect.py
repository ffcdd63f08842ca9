"""The command `resdeploy inspect`: show what a checkpoint is, without exporting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import argument

from resdeploy.cli.options.console import PATH, CommandResult, command, result_text
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.export.inspection import CheckpointSummary

SHOWN_LABELS = 5


@command
@argument("checkpoint", type=PATH)
def inspect(checkpoint: Path) -> CommandResult:
    """Describe CHECKPOINT without executing code in it.

    CHECKPOINT is a run folder, a file of weights, or a folder with weights and their configuration.
    The output names the network, its labels, the pre-processing that an export would use with its
    origin, and the options of export for everything that the checkpoint does not state.

    Exit code: 1 if the checkpoint cannot be exported; otherwise 0.
    """
    from resdeploy.train.checkpoint.file_kind import refuse_missing

    refuse_missing(checkpoint)  # before PyTorch is loaded, which takes seconds
    from resdeploy.export.inspection import inspect_checkpoint

    result = inspect_checkpoint(checkpoint)
    return CommandResult(result, summary_text(result))


@result_text
def summary_text(result: CheckpointSummary) -> str:
    """Return a line for each fact about a checkpoint."""
    from resdeploy.bundle.batch_norm_shift import NO_STATISTICS
    from resdeploy.images.preprocessing_choice import describe_choice

    norms = f"warning: {NO_STATISTICS}" if result.batch_norms_lack_statistics else ""
    network, labels = result.architecture, result.labels or ()
    more = len(labels) - SHOWN_LABELS
    shown = ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
    head = " -> ".join(map(str, [result.features, *network.hidden, network.classes]))
    missing = [f"{name.replace('_', ' ')} ({flag})" for name, flag in result.missing.items()]
    facts = [
        ("tensors", f"named as in {result.scheme}" + (result.place and f", in {result.place}")),
        ("weights", f"{result.weights.value}, {result.dtype}"),
        ("network", f"{result.name}, {result.parameters:,} parameters"),
        ("blocks", f"{network.block.value}, {', '.join(map(str, network.blocks))} per stage, "
                   f"shortcuts {network.shortcut.value}"),
        ("stem", f"{network.stem.value}, {plural(network.input_channels, 'channel')}"),
        ("head", f"{network.pooling.value} pooling, linear {head}"),
        ("batch norms", norms),
        ("labels", shown or f"none for {plural(network.classes, 'output')}"),
        ("input", describe_choice(result.preprocessing, result.origins)),
        ("not stated", ", ".join(missing)),
        *(("note", note) for note in result.notes),
    ]  # fmt: skip
    return "\n".join(f"{name:<12}{text}" for name, text in facts if text)
