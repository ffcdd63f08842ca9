"""The command `resdeploy inspect`: show what a checkpoint is, without exporting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import argument

from resdeploy.cli.console import PATH, CommandResult, command
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.train.checkpoint.inspect import CheckpointSummary

SHOWN_LABELS = 5


@command
@argument("checkpoint", type=PATH)
def inspect(checkpoint: Path) -> CommandResult:
    """Show what CHECKPOINT is, without exporting it and without executing code in it.

    CHECKPOINT is a run folder, a file of weights, or a folder with weights and their configuration.
    The output names the network, its head and its labels, the pre-processing that the checkpoint
    states, and the options of export for everything that it does not state.

    Exit code: 1 if the checkpoint cannot be exported; otherwise 0.
    """
    from resdeploy.train.checkpoint.inspect import inspect_checkpoint

    result = inspect_checkpoint(checkpoint)
    return CommandResult(result, summary_text(result))


def summary_text(result: CheckpointSummary) -> str:
    """Return a line for each fact about a checkpoint."""
    network = result.architecture
    blocks = f"{network.block.value} blocks {', '.join(map(str, network.blocks))}"
    layers = [*network.hidden, network.classes]
    head = " -> ".join(map(str, [result.features, *layers]))
    settings = [f"{name.replace('_', ' ')} {_text(v)}" for name, v in result.preprocessing.items()]
    facts = [
        ("names", result.scheme),
        ("network", f"{result.name}: {blocks}, shortcuts {network.shortcut.value}, "
                    f"{result.parameters:,} parameters"),
        ("stem", f"{network.stem.value}, {plural(network.input_channels, 'channel')}"),
        ("head", f"{network.pooling.value} pooling, linear {head}"),
        ("classes", f"{network.classes}: {_label_text(result.labels)}"),
        ("weights", f"{result.weights}, {result.dtype}"),
        ("pre-processing", ", ".join(settings) or "not stated"),
        *([("stated by", result.preprocessing_source)] if result.preprocessing_source else []),
        *(("not stated", f"{fact}: {options}") for fact, options in result.missing.items()),
        *(("note", note) for note in result.notes),
    ]  # fmt: skip
    return "\n".join(f"{name:<16}{text}" for name, text in facts)


def _label_text(labels: tuple[str, ...] | None) -> str:
    if labels is None:
        return "without labels"
    more = len(labels) - SHOWN_LABELS
    return ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
