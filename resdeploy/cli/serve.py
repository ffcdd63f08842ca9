"""The command `resdeploy serve`: serve bundles over HTTP and gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command
from resdeploy.cli.options import BACKEND, PRECISION
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.runtime.serving.server import ServeSummary


@click.command()
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all networks.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="HTTP port; 0 for any free one."
)
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Also serve gRPC, on this port.")
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    help="Copies of each model that run in parallel.  [default: one per core, at most 4; 1 on a "
    "GPU]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of one instance.  [default: the cores divided by the instances]",
)
@click.option(
    "--max-batch", type=click.IntRange(1, 4096), default=32, help="Largest batch, in images."
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0),
    default=2.0,
    help="Longest time that a free instance waits for more images to batch, in milliseconds.",
)
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(0),
    default=200.0,
    help="Reject a request with 503 if its expected wait exceeds this, in milliseconds.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=256, help="Largest number of waiting images."
)
@click.option(
    "--timeout-ms",
    type=click.FloatRange(1),
    default=10_000.0,
    help="Deadline of a request that sets none, in milliseconds.",
)
@click.option(
    "--max-body-mib",
    type=click.IntRange(1, 2047),
    default=64,
    help="Largest body of one request, in MiB.",
)
@click.option(
    "--bodies-mib",
    type=click.IntRange(1),
    default=512,
    help="Largest total of the bodies of all open requests, in MiB.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=50_000_000, help="Largest picture, in pixels."
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=1024,
    help="Largest number of open connections.",
)
@click.option(
    "--token-file",
    type=PATH,
    help="File with the bearer token that requests must carry.  [default: the variable "
    "RESDEPLOY_TOKEN; no token if it is not set]",
)
@click.option("--tls-cert", type=PATH, help="PEM file with the certificate; needs --tls-key.")
@click.option("--tls-key", type=PATH, help="PEM file with its private key.")
@click.option(
    "--access-log/--no-access-log", default=True, help="Log each request, or only those that fail."
)
@BACKEND
@PRECISION
@command
def serve(bundles: tuple[Path, ...], **settings: Any) -> CommandResult:
    """Serve BUNDLEs over HTTP and gRPC.

    The server speaks the Open Inference Protocol, and has image uploads, a web page and metrics. A
    model is named like its folder, without `.bundle`. SIGHUP loads the bundles that changed.
    SIGTERM completes the accepted requests, then exits.
    """
    from resdeploy.errors import needs_extra
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.serving.config import ServeConfig

    if (settings["tls_cert"] is None) != (settings["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key need each other")
    with needs_extra():
        from resdeploy.runtime.serving.server import serve as run_serve

    result = run_serve(bundles, ServeConfig(**settings), progress_bar)
    return CommandResult(result, served_text(result))


def served_text(served: ServeSummary) -> str:
    """Return the number of requests, images and reloads until the server stopped."""
    reloads = f", {plural(served.reloads, 'reload')}" if served.reloads else ""
    return (
        f"{plural(served.requests, 'request')} and {plural(served.images, 'image')} in "
        f"{served.seconds:.0f} s{reloads}"
    )
