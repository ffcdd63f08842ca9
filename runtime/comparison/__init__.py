"""The comparison of two bundles or two benchmarks."""
