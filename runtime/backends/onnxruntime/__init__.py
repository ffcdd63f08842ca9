"""ONNX Runtime's CPU, CUDA and TensorRT providers as backends, and its profiler."""
