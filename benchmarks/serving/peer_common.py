"""The parts that the other servers share: an ONNX Runtime session and the decoding of pictures.

Decoding uses resdeploy's function, so that only the servers differ, or the plain Pillow calls of
torchvision's examples.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from resdeploy.images.loading import load_image, resize_and_crop
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.json_documents import parse


def make_decoder(manifest: str, decoding: str) -> Callable[[bytes], UInt8Array]:
    """Return a function that decodes a file's content; `decoding` is `resdeploy` or `plain`."""
    document = json.loads(Path(manifest).read_bytes())["preprocessing"]
    preprocessing = parse(Preprocessing, document)
    if decoding == "plain":
        return lambda data: resize_and_crop(
            Image.open(io.BytesIO(data)).convert("RGB"), preprocessing
        )
    return partial(load_image, preprocessing=preprocessing)


def open_session(graph: str, processes: int = 1) -> Any:
    """Return a session that uses an equal part of the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def top_classes(logits: np.ndarray) -> dict[str, Any]:
    """Return the most likely classes of one picture."""
    powers = np.exp(logits - logits.max())
    best = np.argsort(-logits)[:5]
    return {"classes": best.tolist(), "probabilities": (powers[best] / powers.sum()).tolist()}
