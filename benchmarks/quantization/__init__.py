"""Benchmark of INT8 accuracy against other quantisers."""
