"""OpenVINO and a test run's other workers do not share a process.

A worker holds PyTorch and all else that is tested, and twice one that had run OpenVINO as well
crashed. The product does not come to that: what runs OpenVINO is the runtime, which never reaches
PyTorch. tests/runtime/backends/test_openvino_alone.py runs its tests in a process of their own.
"""

from __future__ import annotations

import os

SHARED = "PYTEST_XDIST_WORKER" in os.environ
"""Whether this process is one of several workers, which run whatever comes."""
