"""ONNX graphs: export from PyTorch, float16 conversion, Q/DQ insertion, and graph analysis."""
