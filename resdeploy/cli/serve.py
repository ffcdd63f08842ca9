"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command, parameters
from resdeploy.cli.options import BACKEND, PRECISION
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.runtime.serving.server import ServeSummary


def served_text(served: ServeSummary) -> str:
    """One line: how much was done until the server was stopped."""
    reloaded = f", {plural(served.reloads, 'reload')}" if served.reloads else ""
    return (
        f"{plural(served.requests, 'request')} and {plural(served.images, 'image')} in "
        f"{served.seconds:.0f} s{reloaded}"
    )


def _key_and_certificate(
    context: click.Context, parameter: click.Parameter, key: Path | None
) -> Path | None:
    if (key is None) != (context.params.get("tls_cert") is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    return key


serve_options = parameters(
    click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: all networks."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True),
    click.option("--grpc-port", type=click.IntRange(0, 65535), help="Also gRPC.  [default: no]"),
    click.option(
        "--instances",
        type=click.IntRange(1, 64),
        help="Copies that run at a time.  [default: one for each core, up to 4; one on a GPU]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="Of one instance.  [default: the cores, shared by the instances]",
    ),
    click.option("--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True),
    click.option(
        "--max-delay-ms",
        type=click.FloatRange(0),
        default=2.0,
        show_default=True,
        help="How long an idle engine waits for requests that may join.",
    ),
    click.option(
        "--max-wait-ms",
        type=click.FloatRange(0),
        default=200.0,
        show_default=True,
        help="Who would wait longer is refused: 503.",
    ),
    click.option(
        "--queue",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Images that may wait.",
    ),
    click.option(
        "--timeout-ms",
        type=click.FloatRange(1),
        default=10_000.0,
        show_default=True,
        help="A request's deadline where it names none.",
    ),
    click.option(
        "--max-body-mib",
        type=click.IntRange(1, 2047),
        default=64,
        show_default=True,
        help="Of one request.",
    ),
    click.option(
        "--bodies-mib",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        help="Of all at a time.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=50_000_000,
        show_default=True,
        help="Of one picture.",
    ),
    click.option("--connections", type=click.IntRange(1), default=1024, show_default=True),
    click.option("--token-file", type=PATH, help="Bearer token.  [default: RESDEPLOY_TOKEN]"),
    click.option("--tls-cert", type=PATH, is_eager=True, help="PEM file; needs --tls-key."),
    click.option("--tls-key", type=PATH, callback=_key_and_certificate),
    click.option("--access-log/--no-access-log", default=True, show_default=True),
)


@click.command()
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@serve_options
@BACKEND
@PRECISION
@command
def serve(bundles: tuple[Path, ...], **settings: Any) -> CommandResult:
    """Answer over HTTP with BUNDLEs: tensors, pictures, a page. SIGHUP loads changed ones.

    Names are the folders' without `.bundle`. SIGTERM answers what was accepted, then exits.
    """
    from resdeploy.errors import needs_extra
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.serving.config import ServeConfig

    with needs_extra():
        from resdeploy.runtime.serving.server import serve as run_serve

    result = run_serve(bundles, ServeConfig(**settings), progress_bar)
    return CommandResult(result, served_text(result))
