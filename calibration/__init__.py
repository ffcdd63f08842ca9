"""Quantisation ranges from the activations of calibration images: numpy and ONNX Runtime only."""
