"""The benchmark of the inference server; `python -m benchmarks.serving` runs it."""
