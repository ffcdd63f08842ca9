"""Everything that can be set on a server, with its unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resdeploy.runtime.backends.base import AUTO

MIB = 1 << 20
TOKEN_VARIABLE = "RESDEPLOY_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How to serve; the defaults suit one machine that nobody else can reach."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any that is free; the log says which."""
    grpc_port: int | None = None
    """None: no gRPC."""
    backend: str = AUTO
    precision: str = AUTO
    instances: int | None = None
    """Copies of each model that run at the same time; None: on a CPU as many as have cores of their
    own, but at most 4, and one anywhere else."""
    threads: int | None = None
    """Of one instance on a CPU; None: the cores, shared among the instances."""
    max_batch: int = 32
    """Images that run together at most; fewer where more are not faster."""
    max_delay_ms: float = 2.0
    """How long an idle engine waits for arrivals that is expected."""
    max_wait_ms: float = 200.0
    """A request that would have to wait longer for its turn is refused at once."""
    queue: int = 256
    """Images that may wait, decoded or not."""
    timeout_ms: float = 10_000.0
    """A request's deadline where it names none."""
    max_body_mib: int = 64
    """Of one request."""
    bodies_mib: int = 512
    """Of all requests that are being answered."""
    max_pixels: int = 50_000_000
    """Of one picture."""
    max_files: int = 64
    """In one upload."""
    connections: int = 1024
    header_seconds: float = 10.0
    """To send a request's headers, on a new connection or a kept one."""
    body_seconds: float = 30.0
    """To send a request's body, and to fetch an answer that does not fit into the buffers."""
    idle_seconds: int = 75
    """That a connection is kept without a request."""
    drain_seconds: int = 30
    """For requests in progress when the server is told to stop."""
    token_file: Path | None = None
    """Holds the bearer token; None: it is in RESDEPLOY_TOKEN, or nobody is asked for one."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    access_log: bool = True
    """A line for each request, not only for what went wrong."""

    @property
    def max_body(self) -> int:
        """In bytes."""
        return self.max_body_mib * MIB
