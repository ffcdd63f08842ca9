"""TensorRT and TensorRT-RTX: building engines on the machine that runs them, and running them."""
