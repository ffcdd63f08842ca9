"""From activations of calibration images to quantisation ranges: numpy and ONNX Runtime only."""
