"""An inference server that offers verified models over HTTP and gRPC. It needs `[serve]`."""
