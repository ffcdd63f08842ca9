"""What can be set on `resdeploy serve`; `ServeConfig` says more of each."""

from __future__ import annotations

from pathlib import Path

import click

from resdeploy.console import PATH, parameters


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
