"""The command `resdeploy build`: build TensorRT engines, or remove old ones from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import BadParameter, Choice, UsageError, argument, option

from resdeploy.cli.options.common import PRECISION, FiniteRange, Integers
from resdeploy.cli.options.console import PATH, CommandResult, command, reject_options, result_text
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.runtime.backends.base import Batches
    from resdeploy.runtime.backends.tensorrt.build import BuildReport
    from resdeploy.runtime.backends.tensorrt.engine_cache import PruneReport


def _parse_batches(context: object, parameter: object, text: str | None) -> Batches | None:
    """Return the value of `--batch`."""
    if text is None:
        return None
    from resdeploy.runtime.backends.base import LARGEST, Batches

    try:
        return Batches.parse(text)
    except ValueError as error:
        raise BadParameter(
            f"{text!r} is not MIN,OPT,MAX, in ascending order from 1 to {LARGEST}"
        ) from error


@command
@argument("bundle", type=PATH, required=False)
@PRECISION
@option(
    "--flavour",
    type=Choice(["tensorrt", "tensorrt-rtx"]),
    help="TensorRT product to build with.  [default: tensorrt if it is installed]",
)
@option(
    "--batch",
    metavar="MIN,OPT,MAX",
    callback=_parse_batches,
    help="Smallest, usual and largest batch size; one number for all three.  "
    "[default: 1,8,32; 1,1,4 on a module with 4 GB]",
)
@option(
    "--workspace",
    type=Integers(1, 1 << 20),
    metavar="MIB",
    help="Scratch memory that kernels may use, in MiB.  "
    "[default: no limit; 256 on a module with 4 GB]",
)
@option(
    "--version-compatible",
    is_flag=True,
    help="Let later minor versions of TensorRT load the engine.",
)
@option(
    "--hardware-compatible",
    is_flag=True,
    help="Let all GPUs from Ampere on run the engine, but slower.",
)
@option(
    "--dla",
    type=Integers(0, 15),
    metavar="CORE",
    help="Build for the DLA core of this number, on a Jetson.  [default: for the GPU]",
)
@option("--prune", is_flag=True, help="Only remove the least recently used engines from the cache.")
@option(
    "--keep",
    type=FiniteRange(0, 1e6),
    default=4.0,
    help="Largest size of the cache after --prune, in GiB.",
)
@option("--force", is_flag=True, help="Build even if the cache has this engine.")
def build(bundle: Path | None, prune: bool, keep: float, **settings: Any) -> CommandResult:
    """Build a TensorRT engine of BUNDLE for this machine.

    The engine goes into the engine cache, where `serve`, `bench` and `predict` find it.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.backends.tensorrt.build import build_for_this_machine
    from resdeploy.runtime.backends.tensorrt.engine_cache import prune_engines

    if prune:
        reject_options(("bundle", *settings), "--prune builds nothing")
        pruned = prune_engines(int(keep * 2**30))
        return CommandResult(pruned, prune_text(pruned))
    if bundle is None:
        raise UsageError("name a BUNDLE to build, or add --prune")
    result = build_for_this_machine(open_bundle(bundle), progress=progress_bar, **settings)
    return CommandResult(result, build_text(result))


@result_text
def build_text(result: BuildReport) -> str:
    origin = "found in the cache" if result.cached else f"built in {result.seconds:.1f} s"
    lines = [
        f"engine in the cache, where serve, bench and predict find it: {result.engine}",
        f"{result.artifact}, batch sizes {result.batches}, {result.flavour.value} "
        f"{result.version}: {result.bytes / 1e6:.1f} MB, {origin}",
    ]
    if result.convs is not None and result.int8_convs_expected:
        lines.append(
            f"{result.int8_convs} of {result.convs} convolutions in INT8, "
            f"{result.int8_convs_expected} expected"
        )
    return "\n".join(lines)


@result_text
def prune_text(result: PruneReport) -> str:
    return (
        f"{plural(result.removed, 'engine')} removed ({result.freed_bytes / 1e6:.1f} MB), "
        f"{result.kept} kept ({result.bytes / 1e6:.1f} MB) in {result.folder}"
    )
