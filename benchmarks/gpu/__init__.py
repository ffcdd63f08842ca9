"""The benchmark of TensorRT, ONNX Runtime and PyTorch on a GPU."""
