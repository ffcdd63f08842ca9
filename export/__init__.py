"""From a checkpoint to a bundle: ONNX graphs, their quantised edges, and their proof."""
