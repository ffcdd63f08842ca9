"""What the other servers have in common: ONNX Runtime as it is, and how pictures are decoded.

By the same function as resdeploy's own, so that only the servers differ; or plainly, as
torchvision's examples do it: what such a server costs whose author has not thought of that.
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

from resdeploy.documents import parse
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image, resize_and_crop

TOP = 5


def make_decoder(manifest: str, decoding: str) -> Callable[[bytes], UInt8Array]:
    """From a file's content to what the network sees, as a bundle's manifest says.

    Args:
        manifest: The path.
        decoding: `resdeploy` or `plain`.
    """
    document = json.loads(Path(manifest).read_bytes())["preprocessing"]
    preprocessing = parse(Preprocessing, document)
    if decoding == "plain":
        return lambda data: resize_and_crop(
            Image.open(io.BytesIO(data)).convert("RGB"), preprocessing
        )
    return partial(load_image, preprocessing=preprocessing)


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
