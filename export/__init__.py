"""Export of a checkpoint to a bundle: ONNX graphs, their quantisation, and golden images."""
