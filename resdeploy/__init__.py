"""Train a ResNet, export it once, run it anywhere, and prove that the answers did not change."""

__version__ = "0.1.0"
