"""The command `resdeploy inspect`: show what a network's file is, without exporting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import argument

from resdeploy.cli.options.console import PATH, CommandResult, command, result_text
from resdeploy.tables import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resdeploy.export.inspection import CheckpointSummary, GraphSummary

SHOWN_LABELS = 5
SHOWN_OPERATORS = 6


@command
@argument("network", type=PATH)
def inspect(network: Path) -> CommandResult:
    """Describe NETWORK without executing code in it.

    NETWORK is a run folder, a file of weights, a folder with weights and their configuration, or a
    classifier in an .onnx or .pt2 file. The output names the network, its labels, the
    pre-processing that an export would use with its origin, and the options of export for
    everything that the file does not state.

    Exit code: 1 if the network cannot be exported; otherwise 0.
    """
    from resdeploy.train.checkpoint.file_kind import refuse_missing

    refuse_missing(network)  # before PyTorch is loaded, which takes seconds
    from resdeploy.export.inspection import CheckpointSummary, inspect_network

    result = inspect_network(network)
    is_checkpoint = isinstance(result, CheckpointSummary)
    return CommandResult(result, summary_text(result) if is_checkpoint else graph_text(result))


@result_text
def graph_text(result: GraphSummary) -> str:
    """Return a line for each fact about a graph."""
    facts = [
        ("file", f"{result.kind}, operator set {result.operator_set}"),
        ("images", result.input),
        ("output", f"logits of {plural(result.classes, 'class')}"),
        ("network", f"{result.constants:,} weights and constants; "
                    + _first([f"{n} {o}" for o, n in result.operators.items()], SHOWN_OPERATORS)),
    ]  # fmt: skip
    return _text(facts, result)


@result_text
def summary_text(result: CheckpointSummary) -> str:
    """Return a line for each fact about a checkpoint."""
    from resdeploy.bundle.batch_norm_shift import NO_STATISTICS

    network = result.architecture
    head = " -> ".join(map(str, [result.features, *network.hidden, network.classes]))
    facts = [
        ("tensors", f"named as in {result.scheme}" + (result.place and f", in {result.place}")),
        ("weights", f"{result.weights.value}, {result.dtype}"),
        ("network", f"{result.name}, {result.parameters:,} parameters"),
        ("blocks", f"{network.block.value}, {', '.join(map(str, network.blocks))} per stage, "
                   f"shortcuts {network.shortcut.value}"),
        ("stem", f"{network.stem.value}, {plural(network.input_channels, 'channel')}"),
        ("head", f"{network.pooling.value} pooling, linear {head}"),
        ("batch norms", f"warning: {NO_STATISTICS}" * result.batch_norms_lack_statistics),
        ("labels", _first(result.labels or (), SHOWN_LABELS)
                   or f"none for {plural(network.classes, 'output')}"),
    ]  # fmt: skip
    return _text(facts, result)


def _text(facts: Sequence[tuple[str, str]], result: CheckpointSummary | GraphSummary) -> str:
    from resdeploy.images.preprocessing_choice import describe_choice

    missing = [f"{name.replace('_', ' ')} ({flag})" for name, flag in result.missing.items()]
    common = [
        ("input", describe_choice(result.preprocessing, result.origins)),
        ("not stated", ", ".join(missing)),
        *(("note", note) for note in result.notes),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in (*facts, *common) if text)


def _first(words: Sequence[str], count: int) -> str:
    """Return the first words, and the number of others."""
    more = len(words) - count
    return ", ".join(words[:count]) + (f" and {more} more" if more > 0 else "")
