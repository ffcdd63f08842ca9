"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command, refuse_given
from resdeploy.cli.options import PRECISION
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.runtime.backends.tensorrt.build import BuildReport
    from resdeploy.runtime.backends.tensorrt.engine_cache import PruneReport


def build_text(result: BuildReport) -> str:
    """Where the engine is, what it is, and whether it is in integers as expected."""
    how = "was there" if result.cached else f"built in {result.seconds:.1f} s"
    lines = [
        str(result.engine),
        f"{result.artifact} for batches of {result.batches} by {result.flavour.value} "
        f"{result.version}: {result.bytes / 1e6:.1f} MB, {how}",
    ]
    if result.convs is not None and result.int8_convs_expected:
        lines.append(
            f"{result.int8_convs} of {result.convs} convolutions in INT8, "
            f"{result.int8_convs_expected} expected"
        )
    return "\n".join(lines)


def prune_text(result: PruneReport) -> str:
    """What went, and what stayed."""
    return (
        f"{plural(result.removed, 'engine')} removed ({result.freed_bytes / 1e6:.1f} MB), "
        f"{result.kept} kept ({result.bytes / 1e6:.1f} MB) in {result.folder}"
    )


@click.command()
@click.argument("bundle", type=PATH, required=False)
@PRECISION
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="[default: tensorrt where it is installed]",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    callback=lambda context, parameter, text: read_batches(text),
    help="Images at once: fewest, usual, most; one number for all.  "
    "[default: 1,8,32; 1,1,4 on a module with 4 GB]",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Memory for kernels.")
@click.option("--version-compatible", is_flag=True, help="Later releases may load it.")
@click.option("--hardware-compatible", is_flag=True, help="Other GPUs from Ampere on may run it.")
@click.option("--dla", type=int, metavar="CORE", help="For a Jetson's accelerator, not its GPU.")
@click.option("--prune", is_flag=True, help="Only remove engines, the longest unused first.")
@click.option(
    "--keep",
    type=click.FloatRange(0),
    metavar="GIB",
    default=4.0,
    show_default=True,
    help="What --prune leaves.",
)
@click.option("--force", is_flag=True, help="Build anew what is there already.")
@command
def build(bundle: Path | None, prune: bool, keep: float, **settings: Any) -> CommandResult:
    """Build a TensorRT engine of BUNDLE for this machine, into the cache."""
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.backends.tensorrt.build import build_for_this_machine
    from resdeploy.runtime.backends.tensorrt.engine_cache import prune_engines

    if prune:
        refuse_given({"bundle": bundle, **settings}, "--prune builds nothing")
        pruned = prune_engines(int(keep * 2**30))
        return CommandResult(pruned, prune_text(pruned))
    if bundle is None:
        raise click.UsageError("name a BUNDLE to build, or add --prune")
    result = build_for_this_machine(open_bundle(bundle), progress=progress_bar, **settings)
    return CommandResult(result, build_text(result))


def read_batches(text: str | None) -> Any:
    """The value of --batch."""
    if text is None:
        return None
    from resdeploy.runtime.backends.base import Batches

    try:
        return Batches.parse(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not MIN,OPT,MAX, in ascending order from 1"
        ) from error
