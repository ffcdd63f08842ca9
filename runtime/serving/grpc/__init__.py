"""The gRPC services of the server."""

import os

# gRPC's core writes to stderr itself, from its own threads: a line for each connection that it
# cannot accept, and it waits if nobody reads them. It reads the variable when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
