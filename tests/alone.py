"""The flag that keeps tests of OpenVINO out of xdist's workers.

A worker also imports PyTorch, and twice a worker that had run OpenVINO, too, crashed. Users never
have both in one process, since the runtime does not import PyTorch.
tests/runtime/backends/test_openvino_alone.py runs these tests in a separate process.
"""

from __future__ import annotations

import os

SHARED = "PYTEST_XDIST_WORKER" in os.environ
"""True if this process is a worker of xdist."""
