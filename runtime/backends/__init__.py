"""Inference backends: TensorRT, ONNX Runtime and OpenVINO behind one interface."""
