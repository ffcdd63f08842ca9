"""A toolkit that trains a ResNet, exports it to ONNX, and runs and checks it on any machine."""

import os
import sys

__version__ = "0.1.0"

# Some packages report their use to their makers unless they are told not to before they are loaded:
# ONNX Runtime from 1.32 on reads this variable, and OpenVINO works without its package for this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
