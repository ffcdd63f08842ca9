"""Checks that a backend on this machine reproduces PyTorch's logits."""
