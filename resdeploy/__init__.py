"""A toolkit that trains a ResNet, exports it to ONNX, and runs and checks it on any machine."""

__version__ = "0.1.0"
