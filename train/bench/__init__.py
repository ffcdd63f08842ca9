"""Benchmark worker processes that use PyTorch."""
