"""What the other servers have in common: ONNX Runtime as it is, and resdeploy's own decoding.

Pictures are decoded and resized by the same function, so that only the servers differ.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from resdeploy.preprocessing import Preprocessing

TOP = 5


def read_preprocessing(manifest: str) -> Preprocessing:
    """What a bundle's manifest says."""
    return Preprocessing.from_json(json.loads(Path(manifest).read_bytes())["preprocessing"])


def open_session(graph: str, processes: int = 1) -> Any:
    """A session with its share of the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def top_classes(logits: np.ndarray) -> dict[str, Any]:
    """The most likely classes of one picture."""
    powers = np.exp(logits - logits.max())
    best = np.argsort(-logits)[:TOP]
    return {"classes": best.tolist(), "probabilities": (powers[best] / powers.sum()).tolist()}
