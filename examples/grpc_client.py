"""Send prepared pixels to a server over gRPC, with Triton's client.

    pip install 'tritonclient[grpc]' pillow
    resdeploy serve r34.bundle --grpc-port 8001
    python examples/grpc_client.py r34 cat.jpg

A tensor over gRPC must have the size of the model's input. This script squashes the picture to that
size. If accuracy matters, prepare pictures as the training did, or send files: http_client.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
from PIL import Image


def main() -> None:
    """Print the three classes with the highest logits."""
    parser = argparse.ArgumentParser(description="Classify a picture over gRPC.")
    parser.add_argument("model", help="name of the model: its bundle's, without .bundle")
    parser.add_argument("picture", type=Path, help="image file")
    parser.add_argument("--address", default="localhost:8001", help="address of the server")
    options = parser.parse_args()

    with tritonclient.grpc.InferenceServerClient(options.address) as client:
        metadata: Any = client.get_model_metadata(options.model)
        _, height, width, _ = metadata.inputs[0].shape  # batch, height, width, channels
        picture = Image.open(options.picture).convert("RGB").resize((width, height))
        pixels = np.asarray(picture)[np.newaxis]
        tensor = tritonclient.grpc.InferInput("images", pixels.shape, "UINT8")
        tensor.set_data_from_numpy(pixels)
        wanted = tritonclient.grpc.InferRequestedOutput("logits", class_count=3)
        answer: Any = client.infer(options.model, [tensor], outputs=[wanted])

    for entry in answer.as_numpy("logits").flatten():
        logit, _, label = entry.decode().split(":", 2)
        print(f"{label}: logit {float(logit):.2f}")


if __name__ == "__main__":
    main()
