"""Triton's extensions of the Open Inference Protocol, over HTTP and gRPC."""
