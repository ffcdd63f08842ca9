"""The command `resdeploy serve`: serve bundles over HTTP and gRPC."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any

from click import UsageError, argument, option

from resdeploy.cli.options.common import (
    BACKEND,
    EXACT,
    ISSUER,
    LONGEST_WAIT_MS,
    PRECISION,
    FiniteRange,
    Integers,
)
from resdeploy.cli.options.console import PATH, CommandResult, command, result_text
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.runtime.serving.server import ServeSummary


@partial(command, shows_progress=False)
@argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all networks.")
@option("--port", type=Integers(0, 65535), default=8000, help="HTTP port; 0 for any free one.")
@option(
    "--grpc-port",
    type=Integers(0, 65535),
    help="gRPC port; 0 for any free one.  [default: no gRPC]",
)
@option(
    "--instances",
    type=Integers(1, 64),
    help="Number of copies of each model that run in parallel; on a CPU, fewer if copies and "
    "threads would exceed the cores.  [default: one per core, at most 4; 1 on a GPU]",
)
@option(
    "--threads",
    type=Integers(1, 1024),
    help="Number of CPU threads of one instance.  [default: the cores divided by the instances]",
)
@option("--max-batch", type=Integers(1, 4096), default=32, help="Largest batch, in images.")
@option(
    "--max-delay-ms",
    type=FiniteRange(0, LONGEST_WAIT_MS),
    default=2.0,
    help="Longest time that a free instance waits for more images to batch, in milliseconds.",
)
@option(
    "--max-wait-ms",
    type=FiniteRange(0, LONGEST_WAIT_MS),
    default=200.0,
    help="Reject a request with 503 if its expected wait exceeds this, in milliseconds.",
)
@option(
    "--queue", type=Integers(1, 1_000_000), default=256, help="Largest number of waiting images."
)
@option(
    "--timeout-ms",
    type=FiniteRange(1, LONGEST_WAIT_MS),
    default=10_000.0,
    help="Longest time until a request is answered or refused, in milliseconds.",
)
@option("--max-body-mib", type=Integers(1, 2047), default=64, help="Largest request body, in MiB.")
@option(
    "--bodies-mib",
    type=Integers(1, 1 << 20),
    default=512,
    help="Largest total of all request bodies, in MiB, over HTTP and over gRPC each.",
)
@option(
    "--max-pixels",
    type=Integers(1, 1_000_000_000),
    default=50_000_000,
    help="Largest number of pixels of a picture.",
)
@option(
    "--connections",
    type=Integers(1, 1_000_000),
    default=1024,
    help="Largest number of open connections of each port; with more, the one that has waited "
    "longest for its client is closed.",
)
@option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name under which web pages may use a server without a token on localhost. This option "
    "may be repeated.",
)
@option(
    "--token-file",
    type=PATH,
    help="File with the bearer token that requests must carry.  [default: the variable "
    "RESDEPLOY_TOKEN; no token if it is not set]",
)
@option("--open-metrics", is_flag=True, help="Answer GET /metrics without the token.")
@option("--tls-cert", type=PATH, help="PEM file with the certificate; needs --tls-key.")
@option("--tls-key", type=PATH, help="PEM file with the private key; needs --tls-cert.")
@option(
    "--access-log/--no-access-log", default=True, help="Log each request, or only those that fail."
)
@option(
    "--require-signer",
    metavar="FILE|IDENTITY",
    help="Refuse bundles, at reloads too, unless they are signed by this PEM file's public key or "
    "root certificate, or by this identity.",
)
@ISSUER
@BACKEND
@PRECISION
@EXACT
def serve(
    bundles: tuple[Path, ...], require_signer: str | None, issuer: str | None, **settings: Any
) -> CommandResult:
    """Serve BUNDLEs over HTTP and gRPC.

    The server supports the Open Inference Protocol and image uploads, and has a web page and
    metrics. A model has the name of its bundle's folder, without `.bundle`. On SIGHUP, the server
    loads the bundles that changed; on SIGTERM, it completes the accepted requests and exits.
    """
    from resdeploy.bundle.signature import make_signer
    from resdeploy.errors import needs_extra
    from resdeploy.progress import progress_bar, silent
    from resdeploy.runtime.serving.config import ServeConfig

    if (settings["tls_cert"] is None) != (settings["tls_key"] is None):
        raise UsageError("--tls-cert and --tls-key need each other")
    signer = make_signer(require_signer, issuer)
    with needs_extra():
        from resdeploy.runtime.serving.server import serve as run_serve

    progress = progress_bar if sys.stderr.isatty() else silent  # all of a log is JSON
    result = run_serve(bundles, ServeConfig(signer=signer, **settings), progress)
    # A server must end even if nobody reads its output any more.
    printed = bool(select([], [sys.stdout], [], 1.0)[1])
    return CommandResult(result, served_text(result), printed=printed)


@result_text
def served_text(served: ServeSummary) -> str:
    reloads = f", {plural(served.reloads, 'reload')}" if served.reloads else ""
    return (
        f"{plural(served.requests, 'request')} and {plural(served.images, 'image')} in "
        f"{served.seconds:.0f} s{reloads}"
    )
