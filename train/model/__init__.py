"""Residual networks and their checkpoints."""
