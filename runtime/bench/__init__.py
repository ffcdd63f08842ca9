"""The benchmark of a bundle against PyTorch."""
