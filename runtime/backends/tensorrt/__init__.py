"""TensorRT and TensorRT-RTX: functions that build, cache and run engines on the target machine."""
