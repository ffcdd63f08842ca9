"""The requests of the load generators: a binary tensor, and a form with a JPEG file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.export.golden_images import synthetic_images
from resdeploy.images.preprocessing import UInt8Array

FORM = (
    b'--line\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    b"Content-Type: image/jpeg\r\n\r\n%b\r\n--line--\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that a load generator repeats."""

    path: str
    file: Path
    content_type: str
    images: int = 1
    headers: tuple[str, ...] = ()


def tensor_head(images: UInt8Array, **fields: Any) -> bytes:
    """Return the JSON head of a request whose images (N, H, W, 3) follow as bytes."""
    entry = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes},
    }
    return json.dumps({"inputs": [entry], **fields}).encode()


def tensor_request(bundle: Bundle, work: Path, batch: int) -> Request:
    """Return a request with `batch` images as one binary tensor."""
    images = synthetic_images(bundle.manifest.preprocessing.image_size, batch, seed=2)
    head = tensor_head(images, parameters={"binary_data_output": True})
    (work / "tensors").write_bytes(head + images.tobytes())
    return Request(
        path=f"/v2/models/{bundle.path.name.removesuffix('.bundle')}/infer",
        file=work / "tensors",
        content_type="application/octet-stream",
        images=batch,
        headers=(f"Inference-Header-Content-Length: {len(head)}",),
    )


def make_jpeg(size: tuple[int, int]) -> bytes:
    """Return a synthetic picture of `size` (width, height) as a JPEG file."""
    stream = BytesIO()
    photograph = Image.fromarray(synthetic_images(512, 1, seed=3)[0])
    photograph.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def picture_request(work: Path, size: tuple[int, int]) -> Request:
    """Return an upload of a picture of `size` (width, height), as a browser or curl sends it."""
    file = work / "form"
    file.write_bytes(FORM % make_jpeg(size))
    return Request(
        path="/v1/classify", file=file, content_type="multipart/form-data; boundary=line"
    )
