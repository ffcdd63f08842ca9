"""The inference server: HTTP, gRPC and a page in front of verified models. Needs `[serve]`."""
