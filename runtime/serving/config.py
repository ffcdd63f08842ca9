"""The settings of a server, with their units and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.signature import Signer
from resdeploy.runtime.backends.base import AUTO

TOKEN_VARIABLE = "RESDEPLOY_TOKEN"
PEM_HINT = "name a PEM file with --tls-cert and --tls-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings of a server; the defaults suit clients on the same machine."""

    host: str = "127.0.0.1"
    port: int = 8000
    """HTTP port; 0 selects a free port, which the log names."""
    grpc_port: int | None = None
    """gRPC port; 0 selects a free port, None disables gRPC."""
    backend: str = AUTO
    precision: str = AUTO
    exact: bool = False
    """True to serve only the bits of the export: `int8-cpu` on `onnxruntime-cpu`."""
    instances: int | None = None
    """Number of copies of each model that run concurrently. None selects one per core up to 4 on
    a CPU, and 1 on any other device."""
    threads: int | None = None
    """Number of threads of one instance on a CPU; None divides the cores among the instances."""
    max_batch: int = 32
    """Maximum number of images in a batch; batches stay smaller if that is as fast."""
    max_delay_ms: float = 2.0
    """Maximum time in milliseconds that an idle engine waits for more requests."""
    max_wait_ms: float = 200.0
    """Maximum expected wait in the queue in milliseconds; above it a request is rejected."""
    queue: int = 256
    """Maximum number of queued images, including images that are not decoded yet."""
    timeout_ms: float = 10_000.0
    """Deadline of a request in milliseconds; a request may specify a shorter one."""
    max_body_mib: int = 64
    """Maximum size in MiB of one request body."""
    bodies_mib: int = 512
    """Maximum size in MiB of the bodies of all requests in progress."""
    max_pixels: int = 50_000_000
    """Maximum number of pixels of one picture."""
    max_files: int = 64
    """Maximum number of files in one upload."""
    connections: int = 1024
    """Maximum number of connections of each port, as far as there are file handles."""
    header_seconds: float = 10.0
    """Time limit in seconds to send the headers of a request."""
    body_seconds: float = 30.0
    """Time limit in seconds to send a body, and to read a response that filled the buffers."""
    idle_seconds: int = 75
    """Time in seconds after which an idle connection is closed."""
    drain_seconds: int = 30
    """Time limit in seconds for requests in progress when the server stops."""
    allow_host: tuple[str, ...] = ()
    """Additional names that an open server on localhost accepts as Host and Origin."""
    token_file: Path | None = None
    """File with the bearer token. None reads RESDEPLOY_TOKEN; without both, no token is needed."""
    open_metrics: bool = False
    """True to answer GET /metrics without the token."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    signer: Signer | None = None
    """Whoever must have signed every bundle; None to serve unsigned ones, too."""
    access_log: bool = True
    """True to log every request for a model, False to log only failed requests."""

    @property
    def max_body(self) -> int:
        """Maximum size of one request body in bytes."""
        return self.max_body_mib << 20
