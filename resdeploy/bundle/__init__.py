"""Bundles: the folders with graphs, labels and golden images that an export writes."""
